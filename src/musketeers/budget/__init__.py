"""What a time budget buys: other ways to learn alone, tried by successive halving."""
