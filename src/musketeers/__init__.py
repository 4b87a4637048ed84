"""Multi-target cross-domain recommendation (placeholder, filled in with the public names)."""
