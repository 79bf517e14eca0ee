"""The run directory and the offline report drawn from it."""
