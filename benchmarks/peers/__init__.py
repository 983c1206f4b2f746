"""The same training written by hand on other tools, as their own tutorials do it."""
