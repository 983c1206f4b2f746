"""The collector: what nodes and runs say, kept and watched, and people told."""
