"""The one loop, and the data that feed it."""
