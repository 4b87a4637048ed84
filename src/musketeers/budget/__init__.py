"""Other ways to learn alone, tried by successive halving, also within a time budget."""
