"""Noise from a cryptographic generator."""
