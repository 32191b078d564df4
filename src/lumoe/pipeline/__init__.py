"""What the artifact needs besides the domain: settings, claims, provenance, the graph of rules."""
