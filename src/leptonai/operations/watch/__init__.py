"""A training run watched while it goes: spikes, divergence, stragglers, hangs, silent corruption."""
