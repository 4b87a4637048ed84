"""From files and frames to row-numbered interactions, one table per domain."""
