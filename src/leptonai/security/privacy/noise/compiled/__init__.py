"""C kernels of the noise sources, compiled at first use."""
