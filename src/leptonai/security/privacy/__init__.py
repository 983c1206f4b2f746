"""Differential privacy: private steps, noise, accounting, statistics, the ledger and the proof."""
