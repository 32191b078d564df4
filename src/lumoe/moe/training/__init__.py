"""How the shipped model was trained, and how it is checked."""
