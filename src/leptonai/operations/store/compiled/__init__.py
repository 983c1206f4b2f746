"""The store's compiled kernels: C sources, compiled at first use."""
