"""Sparse tables: embeddings larger than a worker's memory, rows pulled and pushed by id."""
