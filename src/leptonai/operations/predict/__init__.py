"""Chances of failure and remaining life, with the coverage they claim."""
