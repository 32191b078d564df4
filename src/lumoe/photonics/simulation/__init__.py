"""A discrete-event check of the closed forms: finite buffers, ports and rewrites."""
