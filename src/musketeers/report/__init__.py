"""What a run found, as tables in the terminal and as one HTML page."""
