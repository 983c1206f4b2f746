"""How pushes are made small: quantisers, sparsifiers, low rank, and the feedback of what was left out."""
