"""Exact tabular worlds, in which every answer can be written down and every claim checked."""
