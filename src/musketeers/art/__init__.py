"""Stage 3, all for one: attention-based representation transfer."""
