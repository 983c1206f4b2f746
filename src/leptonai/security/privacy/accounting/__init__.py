"""What mechanisms cost: privacy loss distributions, Renyi divergences, calibration."""
