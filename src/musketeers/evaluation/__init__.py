"""How good a ranking is, and whether a difference is more than chance."""
