"""Learned and programmatic rewards, and the scoring contract."""
