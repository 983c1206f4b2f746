"""Keeping data private and rules kept."""
