"""Evidence that a private run kept its promise."""
