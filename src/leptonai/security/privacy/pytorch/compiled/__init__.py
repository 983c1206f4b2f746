"""Kernels in C, compiled where they run, for what no tensor operation does in one pass."""
