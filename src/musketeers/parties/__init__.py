"""Domains that do not pool their data: what leaves one, who made it, and how all learn from it."""
