"""Losses: pure tensor functions, unreduced, without models, configs or ranks."""
