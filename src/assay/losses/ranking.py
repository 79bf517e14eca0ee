"""Losses on rankings, one value per ranking: rewards [G, K], best first, `present` False where a ranking is shorter."""

import torch
import torch.nn.functional as F

from assay.shapes import GroupFloat, RankingBool, RankingFloat, RankingInt, RowFloat, RowInt


def by_ranking(values: RowFloat, ranking: RowInt) -> tuple[RankingFloat, RankingBool]:
    """[G, K] and where it is filled, from values whose rows say which ranking they belong to (0, 0, 0, 1, 1, ...).

    Source: no formula, the layout that the losses below read.
    """
    counts = torch.bincount(ranking)
    present = torch.arange(int(counts.max()), device=values.device) < counts[:, None]
    return values.new_zeros(present.shape).masked_scatter(present, values), present


def plackett_luce(rewards: RankingFloat, present: RankingBool) -> GroupFloat:
    """-sum_k (r_k - logsumexp_{j >= k} r_j): each place goes to one of those left, by softmax of their rewards.

    Source: Plackett 1975, "The analysis of permutations"; Luce 1959.
    """
    left = rewards.masked_fill(~present, -torch.inf).flip(-1).logcumsumexp(-1).flip(-1)
    return torch.where(present, left - rewards, 0.0).sum(-1)


def best_of_k(rewards: RankingFloat, present: RankingBool) -> GroupFloat:
    """-(r_1 - logsumexp_j r_j): only the best is known. Source: the first place of Plackett-Luce, Luce 1959."""
    return rewards.masked_fill(~present, -torch.inf).logsumexp(-1) - rewards[:, 0]


def kwise_bradley_terry(rewards: RankingFloat, ranks: RankingInt, present: RankingBool) -> GroupFloat:
    """Mean of -log sigmoid(r_i - r_j) over a ranking's pairs with rank i before rank j; tied ranks say nothing.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1: all K choose 2 pairs of a prompt are one element.
    """
    before = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    losses = -F.logsigmoid(rewards[:, :, None] - rewards[:, None, :])
    return torch.where(before, losses, 0.0).sum((1, 2)) / before.sum((1, 2)).clamp(min=1)
