"""Per-example clipping for PyTorch models."""
