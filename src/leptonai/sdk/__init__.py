"""The programs of the facade: fit a live model on a cluster, from a script or a notebook cell."""
