"""Credit assignment: from rewards to advantages. Time moves over counted tokens only."""

import torch
from torch import Tensor

from assay.shapes import RowFloat, RowInt, TokenBool, TokenFloat

ROUNDING = 1e-6  # of numbers around 1 that come from fp32 ones


def leave_one_out(rewards: RowFloat, group: RowInt) -> RowFloat:
    """r_i minus the mean reward of i's siblings; 0 for a response without siblings.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024,
    arXiv:2402.14740, sec. 2.3.
    """
    total, size = _totals(rewards, group)
    siblings = size - 1
    others = (total - rewards) / siblings.clamp(min=1)
    return torch.where(siblings > 0, rewards - others, 0.0).to(rewards.dtype)


def group_mean(rewards: RowFloat, group: RowInt) -> RowFloat:
    """The mean reward of each response's group, itself included.

    Source: definition; as a baseline Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2, where it shrinks the gradient of G
    responses to (G - 1) / G of the policy gradient.
    """
    total, size = _totals(rewards, group)
    return (total / size).to(rewards.dtype)


def group_deviation(rewards: RowFloat, group: RowInt) -> RowFloat:
    """The standard deviation (of a sample, n - 1) of each response's group; 0 for a response alone.

    Source: definition; Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2, do not say which one; n - 1 is usual.
    """
    total, size = _totals((rewards - group_mean(rewards, group)) ** 2, group)
    return torch.sqrt(total / (size - 1).clamp(min=1)).to(rewards.dtype)


def at_last_token(rewards: RowFloat, mask: TokenBool) -> TokenFloat:
    """A reward paid after each response's last counted token; none where no token counts.

    Source: Chaudhari et al. 2024, arXiv:2404.08555, sec. 4.3 (the sparse reward of a whole output).
    """
    place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask * place).amax(dim=1, keepdim=True)
    return torch.where(mask & (place == last), rewards[:, None], 0.0)


def rewards_to_go(token_rewards: TokenFloat, mask: TokenBool, gamma: float) -> TokenFloat:
    """sum over later counted tokens k >= t of gamma^(k - t) r_k; 0 where masked.

    Source: Williams 1992, sec. 4; Sutton & Barto 2018, eq. 3.8.
    """
    zeros = torch.zeros_like(token_rewards)
    return gae(token_rewards, zeros, mask, gamma=gamma, lam=1.0)


def gae(token_rewards: TokenFloat, values: TokenFloat, mask: TokenBool, *, gamma: float, lam: float) -> TokenFloat:
    """Generalised advantages: A_t = sum_l (gamma lam)^l delta_(t + l), delta_t = r_t + gamma V_(t+1) - V_t.

    Each response ends after its last counted token, V = 0 there. What is paid at a token that does not count (an
    environment's) belongs to the counted one before it, if there is one. `lam` 1: rewards to go minus V; 0: delta.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    found = torch.zeros_like(token_rewards)
    later = torch.zeros_like(token_rewards[:, 0])  # the advantage of the next counted token
    value, pending = later, later  # its value; what was paid since
    for t in range(mask.shape[1] - 1, -1, -1):
        counts = mask[:, t]
        paid = torch.where(counts | token_rewards[:, t].isfinite(), token_rewards[:, t], 0.0) + pending
        delta = paid + gamma * value - values[:, t]
        now = delta + gamma * lam * later
        found[:, t] = torch.where(counts, now, 0.0)
        later = torch.where(counts, now, later)
        value = torch.where(counts, values[:, t], value)
        pending = torch.where(counts, 0.0, paid)
    return found


def whiten(values: TokenFloat, mask: TokenBool) -> TokenFloat:
    """Counted values less their mean, over their standard deviation; 0 where masked.

    Padding does not count, neither for the mean nor for the deviation. A single value is its own mean. A deviation of
    at most 1e-6, or of 1e-6 of the largest value, is rounding, as of a KL between equal policies, and stays as small.

    Source: the public code of Ziegler et al. 2019, arXiv:1909.08593; the mask is ours.
    """
    counted = values[mask].double()  # in fp32 the rounding of the mean of equal values would pass for a deviation
    if len(counted) < 2:
        return torch.zeros_like(values)
    deviation, rounding = counted.std(), ROUNDING * max(1.0, float(counted.abs().max()))
    scaled = (values.double() - counted.mean()) / (deviation if deviation > rounding else 1.0)
    return torch.where(mask, scaled.to(values.dtype), 0.0)


def shaping(potentials: TokenFloat, mask: TokenBool, gamma: float) -> TokenFloat:
    """gamma Phi_(t+1) - Phi_t at each counted token, Phi being 0 after the last: it leaves the best policy as it is.

    `potentials[b, t]` is Phi of the state before token t.

    Source: Ng, Harada & Russell 1999, "Policy invariance under reward transformations", theorem 1.
    """
    zeros = torch.zeros_like(potentials)
    return gae(zeros, potentials, mask, gamma=gamma, lam=0.0)


def spread_evenly(rewards: RowFloat, mask: TokenBool) -> TokenFloat:
    """A response's reward in equal parts on its counted tokens.

    Source: definition; what attributions are compared with.
    """
    return torch.where(mask, (rewards / mask.sum(dim=1).clamp(min=1))[:, None], 0.0)


def redistribute(rewards: RowFloat, attributions: TokenFloat, mask: TokenBool) -> TokenFloat:
    """Dense rewards that sum to each response's: its attributions, what they leave over shared by all its tokens.

    With attributions beta log pi / pi_ref of a policy trained by preferences each token is paid what that policy's
    implicit reward says of it.

    Source: Rafailov et al. 2024, arXiv:2404.12358, sec. 4.2 (log-ratios as token rewards); the remainder is ours.
    """
    counted = torch.where(mask, attributions, 0.0)
    rest = rewards - counted.sum(dim=1)
    return counted + spread_evenly(rest, mask)


def win_rates(rewards: RowFloat, group: RowInt) -> RowFloat:
    """Mean over siblings of the probability, by Bradley-Terry, that a response is preferred to them; 1/2 alone.

    Source: Wu et al. 2024, arXiv:2405.00675, algorithm 1 (its estimate of P(y beats pi_t), here without y itself).
    """
    kin = (group[:, None] == group) & ~torch.eye(len(group), dtype=torch.bool, device=group.device)
    chance = torch.sigmoid(rewards[:, None] - rewards)
    return torch.where(kin.any(1), (chance * kin).sum(1) / kin.sum(1).clamp(min=1), 0.5)


def _totals(values: RowFloat, group: RowInt) -> tuple[Tensor, Tensor]:
    """Sum and size of each response's group, [B] each; in fp64, where the mean of equal values is that value."""
    _, index, size = torch.unique(group, return_inverse=True, return_counts=True)
    total = torch.zeros(len(size), dtype=torch.float64, device=values.device).index_add(0, index, values.double())
    return total[index], size[index]
