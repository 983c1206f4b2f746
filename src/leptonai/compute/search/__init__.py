"""Finding the best layouts of a run: enumerate, prune by memory, cost, compare."""
