"""Accelerators and priced machines, as data with sources."""
