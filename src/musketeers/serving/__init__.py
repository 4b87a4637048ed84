"""Recommendations over HTTP, from a finished run."""
