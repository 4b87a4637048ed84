"""Many models on the same data: tuned alike, over several seeds, tested against each other."""
