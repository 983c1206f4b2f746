"""The loops in C, and the library made of them at first use."""
