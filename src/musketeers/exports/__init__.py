"""What a run recommends, as vectors for systems that rank by inner products."""
