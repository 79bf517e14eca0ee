"""People who want different things: annotators in hidden groups, each group with rewards of its own, found by EM.

Source: the EM algorithm of Dempster, Laird & Rubin 1977, on a mixture of Bradley-Terry models; mixtures of rewards for
people who differ: Chakraborty et al. 2024, arXiv:2402.08925 (hard assignments there, soft ones here).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.lab.fit import maximise
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from assay.losses.preference import bradley_terry
from assay.rewards.likelihoods.base import preferences
from assay.rewards.likelihoods.comparisons import BradleyTerry

PLAIN = BradleyTerry(centring_coef=0.0)
SHARPNESS = 3.0  # of the random responsibilities that EM starts from; near-even ones would start at a saddle point


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """A fit: rewards [K, C, O], each group's up to a constant of each context; who belongs where; how it went.

    `weights` [K] are the groups' shares; `responsibilities` [A, K] the probability that an annotator belongs to a
    group; `history` the log-likelihood in nats of each iteration, with the logarithm of the prior, which never falls.
    """

    rewards: Tensor
    weights: Tensor
    responsibilities: Tensor
    history: tuple[float, ...]


def fit_groups(
    world: World,
    batch: TokenBatch,
    num_groups: int,
    *,
    precision: float = 0.0,
    restarts: int = 4,
    max_iterations: int = 200,
    tolerance: float = 1e-8,
    seed: int = 0,
) -> Groups:
    """The best of `restarts` runs of EM on comparisons whose `annotator` [B] is a number from 0.

    `precision` is that of a Gaussian prior on every reward around 0: without one, a pair that a group always judges
    alike has no finite maximum. A run ends when an iteration gains less than `tolerance` nats. Labels of the groups
    are arbitrary. One group is the pooled Bradley-Terry model.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = (_run(world, batch, num_groups, precision, max_iterations, tolerance, generator) for _ in range(restarts))
    return max(runs, key=lambda run: run.history[-1])


def log_likelihoods(world: World, groups: Groups, batch: TokenBatch) -> Tensor:
    """[A] nats of further comparisons by the same annotators, the probability averaged over where each belongs."""
    found = _of_annotators(world, groups.rewards, batch, len(groups.responsibilities))
    return (groups.responsibilities.log() + found).logsumexp(1)


def _run(
    world: World,
    batch: TokenBatch,
    num_groups: int,
    precision: float,
    max_iterations: int,
    tolerance: float,
    generator: torch.Generator,
) -> Groups:
    num = int(batch.annotator.max()) + 1
    start = SHARPNESS * torch.randn(num, num_groups, generator=generator, dtype=torch.float64)
    groups = Groups(
        rewards=torch.zeros(num_groups, *world.oracle.shape, dtype=torch.float64),
        weights=torch.full((num_groups,), 1 / num_groups, dtype=torch.float64),
        responsibilities=start.softmax(1),
        history=(),
    )
    for _ in range(max_iterations):
        groups = _expect(world, _maximise(world, groups, batch, precision), batch, precision)
        if len(groups.history) > 1 and groups.history[-1] - groups.history[-2] < tolerance:
            break
    return groups


def _maximise(world: World, groups: Groups, batch: TokenBatch, precision: float) -> Groups:
    """The M-step: a weighted maximum a posteriori for each group, from where it stood; and the groups' shares."""
    rewards = torch.stack(
        [_fit(world, group, batch, groups.responsibilities[:, k], precision) for k, group in enumerate(groups.rewards)]
    )
    return replace(groups, rewards=rewards, weights=groups.responsibilities.mean(0))


def _fit(world: World, start: Tensor, batch: TokenBatch, belongs: Tensor, precision: float) -> Tensor:
    """[C, O] rewards when annotator a's comparisons count `belongs[a]` times."""
    model = TabularModel(world, dtype=torch.float64)
    model.reward_weights.data.copy_(start)
    weight = belongs[batch.annotator].clone()
    total = float(weight[0::2].sum())
    if total < 1e-9:  # a group without members, about which only the prior speaks
        return torch.zeros_like(start)
    weight[1::2] = 1  # a pair's weight is the product of its rows'
    maximise(model, PLAIN, batch.fill(weight=weight), prior=precision / total)
    return model.rewards.detach().clone()


def _expect(world: World, groups: Groups, batch: TokenBatch, precision: float) -> Groups:
    """The E-step: r_ak in proportion to weight_k times the probability of all that a said."""
    joint = groups.weights.log() + _of_annotators(world, groups.rewards, batch, len(groups.responsibilities))
    gained = float(joint.logsumexp(1).sum()) - precision / 2 * float((groups.rewards**2).sum())
    if not math.isfinite(gained):
        raise FloatingPointError(f"the log-likelihood is {gained}")
    return replace(groups, responsibilities=joint.softmax(1), history=(*groups.history, gained))


def _of_annotators(world: World, rewards: Tensor, batch: TokenBatch, num: int) -> Tensor:
    """[A, K] the log-likelihood of each annotator's comparisons under each group's rewards."""
    columns = []
    for group in rewards:
        model = TabularModel(world, dtype=torch.float64)
        model.reward_weights.data.copy_(group)
        out = model(batch, ("rewards",)).rewards.detach()
        chosen, rejected = out[0::2], out[1::2]
        said = -bradley_terry(chosen, rejected, preference=preferences(batch, chosen))
        columns.append(torch.zeros(num, dtype=torch.float64).index_add(0, batch.annotator[0::2], said))
    return torch.stack(columns, 1)
