"""What the contestants are given: the same network, the same numbers, the same files."""
