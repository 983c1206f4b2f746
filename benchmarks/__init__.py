"""Measured claims: each module runs our side and its peers in turns and prints figures with their goals."""
