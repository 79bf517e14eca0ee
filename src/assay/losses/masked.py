"""Sums over the tokens that count. A masked value may be anything, NaN too."""

import torch

from assay.shapes import RowFloat, TokenBool, TokenFloat


def masked_sum(values: TokenFloat, mask: TokenBool) -> RowFloat:
    """Sum over each response's counted tokens; 0 where none counts.

    Source: definition.
    """
    return torch.where(mask, values, 0.0).sum(dim=1)


def masked_mean(values: TokenFloat, mask: TokenBool) -> RowFloat:
    """Mean over each response's counted tokens; 0 where none counts.

    Source: definition.
    """
    return masked_sum(values, mask) / mask.sum(dim=1).clamp(min=1)
