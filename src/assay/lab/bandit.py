"""Bandits in which comparisons cover arms unevenly: where maximum likelihood trusts a single lucky win.

Source: Zhu et al. 2024, arXiv:2401.16335, secs. 2 and 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.rewards.ids import IDS
from assay.settings import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Comparisons:
    """Seeds x pairs of arms: first and second [P]; counts [P] of comparisons; wins [S, P] of the first among them."""

    first: Tensor
    second: Tensor
    counts: Tensor
    wins: Tensor
    truth: Tensor  # [K] the arms' true rewards


def star(arms: int, num: int, seeds: int, *, seed: int = 0) -> Comparisons:
    """The hard instance: rewards (1, 0, ..., 0); arms 1 and 2 compared often, arm 1 with each other arm once.

    `num` comparisons in all, at least one for each other arm; `seeds` independent draws of their outcomes.
    """
    if not num >= arms - 1 >= 1:
        raise InputError(
            f"star: {num} comparisons of {arms} arms; give at least two arms, and one for each but the first"
        )
    truth = torch.zeros(arms, dtype=torch.float64)
    truth[0] = 1
    second = torch.arange(1, arms)
    first = torch.zeros_like(second)
    counts = torch.ones(arms - 1, dtype=torch.float64)
    counts[0] = num - (arms - 2)
    generator = torch.Generator().manual_seed(seed)
    share = torch.sigmoid(truth[first] - truth[second])
    wins = torch.binomial(counts.expand(seeds, -1), share.expand(seeds, -1), generator=generator)
    return Comparisons(first, second, counts, wins, truth)


def descend(data: Comparisons, ids: IDS, *, lr: float, steps: int) -> tuple[Tensor, Tensor]:
    """Rewards [S, K] and the mean label of each pair [S, P] after full-batch gradient descent on the mean loss.

    Labels move each step as `ids` says. All comparisons of a pair move alike, so their mean label is kept.
    """
    seeds, arms = len(data.wins), len(data.truth)
    rewards = torch.zeros(seeds, arms, dtype=torch.float64)
    labels = data.wins / data.counts
    weight = data.counts / data.counts.sum()
    for _ in range(steps):
        difference = rewards[:, data.first] - rewards[:, data.second]
        push = weight * (labels - torch.sigmoid(difference))
        if ids.order == "simultaneous":
            labels = ids.move(labels, difference)
        rewards = rewards.index_add(1, data.first, lr * push).index_add(1, data.second, -lr * push)
        if ids.order == "paper" and ids.beta:
            labels = ids.move(labels, rewards[:, data.first] - rewards[:, data.second])
    return rewards, labels


def wrong_arm_rate(rewards: Tensor, truth: Tensor) -> float:
    """Share of seeds whose highest reward is on an arm that is not the best."""
    return float((rewards.argmax(-1) != truth.argmax()).double().mean())


def excess_cross_entropy(data: Comparisons, rewards: Tensor) -> Tensor:
    """[S] expected loss over all pairs of arms, evenly, less that of the truth."""
    first, second = torch.triu_indices(len(data.truth), len(data.truth), 1)
    share = torch.sigmoid(data.truth[first] - data.truth[second])

    def loss(difference: Tensor) -> Tensor:
        logs = torch.nn.functional.logsigmoid
        return -(share * logs(difference) + (1 - share) * logs(-difference)).mean(-1)

    return loss(rewards[:, first] - rewards[:, second]) - loss(data.truth[first] - data.truth[second])


def kl_frontier(rewards: Tensor, truth: Tensor, reference: Tensor, coefs: Tensor) -> tuple[Tensor, Tensor]:
    """(KL to the reference, true reward), each [L], of pi ~ reference exp(rewards / coef), rewards [K]."""
    logits = reference.log() + rewards / coefs[:, None]
    policy = logits.softmax(-1)
    kl = (policy * (logits.log_softmax(-1) - reference.log())).sum(-1)
    return kl, policy @ truth
