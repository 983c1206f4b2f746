"""Private statistics on tables."""
