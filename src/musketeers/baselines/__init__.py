"""Models that know one domain only, or no user at all."""
