"""Credit assignment: from rewards to advantages."""

import torch

from assay.shapes import RowFloat, RowInt


def leave_one_out(rewards: RowFloat, group: RowInt) -> RowFloat:
    """r_i minus the mean reward of i's siblings; 0 for a response without siblings.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!", eq. 5; Ahmadian et al. 2024,
    arXiv:2402.14740, eq. 10.
    """
    _, index, size = torch.unique(group, return_inverse=True, return_counts=True)
    total = torch.zeros(len(size), dtype=rewards.dtype, device=rewards.device).index_add(0, index, rewards)
    siblings = size[index] - 1
    others = (total[index] - rewards) / siblings.clamp(min=1)
    return torch.where(siblings > 0, rewards - others, 0.0)
