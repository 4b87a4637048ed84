"""Stage 1: a domain learns alone."""
