"""Assay: reinforcement learning from human feedback with the reward model under test."""

__version__ = "0.1.0"
