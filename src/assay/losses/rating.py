"""Losses on single rated responses, one value per response."""

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.shapes import Levels, RowFloat, RowInt


def regression(rewards: RowFloat, ratings: RowFloat) -> RowFloat:
    """(r - y)^2. Source: Chaudhari et al. 2024, arXiv:2404.08555, sec. 4.2: ratings as the reward itself."""
    return (rewards - ratings) ** 2


def binary(rewards: RowFloat, labels: RowFloat) -> RowFloat:
    """Cross entropy of sigmoid(r) and a label in [0, 1]: good or bad, without a comparison.

    Source: Cox 1958, "The regression analysis of binary sequences" (logistic regression).
    """
    return F.binary_cross_entropy_with_logits(rewards, labels, reduction="none")


def ordinal(rewards: RowFloat, thresholds: Levels, levels: RowInt) -> RowFloat:
    """Cumulative logits: P(y <= j) = sigmoid(theta_j - r), levels 0 to L with L increasing thresholds theta.

    Source: McCullagh 1980, "Regression models for ordinal data", sec. 2 (proportional odds).
    """
    ends = F.pad(thresholds, (1, 1))
    upper = torch.where(levels < len(thresholds), ends[levels + 1] - rewards, torch.inf)
    lower = torch.where(levels > 0, ends[levels] - rewards, -torch.inf)
    return -log_difference_of_sigmoids(upper, lower)


def increasing(free: Levels) -> Levels:
    """Thresholds from free numbers: the first, then each a softplus above the one before. Source: as `ordinal`."""
    return torch.cat([free[:1], free[:1] + F.softplus(free[1:]).cumsum(0)])


def log_difference_of_sigmoids(upper: Tensor, lower: Tensor) -> Tensor:
    """log(sigmoid(upper) - sigmoid(lower)) for upper > lower, without cancellation; the ends may be infinite.

    Source: sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), by writing both out.
    """
    inside = torch.isfinite(upper) & torch.isfinite(lower)
    gap = torch.where(inside, upper - lower, 1.0)
    both = F.logsigmoid(upper) + F.logsigmoid(-lower)
    return both + torch.where(inside, torch.log(-torch.expm1(-gap)), 0.0)
