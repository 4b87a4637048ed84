"""Models to measure against: of no user, of one domain alone, of all domains' data at once."""
