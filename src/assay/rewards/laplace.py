"""How sure a reward's linear head is: a Gaussian posterior around the weights that maximise it.

Training a reward model is finding the maximum of the posterior of its weights (Chaudhari et al. 2024, arXiv:2404.08555,
sec. 2.1). Here the head alone is uncertain; the body that makes its features is taken as known.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.rewards.model import Conversation, RewardModel
from assay.settings import InputError

MAX_STEPS = 100
TOLERANCE = 1e-10  # of the gradient, per pair


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Normal around `weights` [D] with `covariance` [D, D], fp64; x [P, D] are differences of features below."""

    weights: Tensor
    covariance: Tensor

    def mean(self, x: Tensor) -> Tensor:
        """[P] the mean of each reward difference, x w."""
        return x.double() @ self.weights

    def variance(self, x: Tensor) -> Tensor:
        """[P] its variance, x Sigma x."""
        x = x.double()
        return ((x @ self.covariance) * x).sum(-1)

    def probability(self, x: Tensor) -> Tensor:
        """[P] that the first of each pair is preferred, the weights integrated out: sigmoid(mu / sqrt(1 + pi v / 8)).

        Source: MacKay 1992, "The evidence framework applied to classification networks", eq. 10.
        """
        return torch.sigmoid(self.mean(x) / torch.sqrt(1 + torch.pi * self.variance(x) / 8))


def laplace(x: Tensor, *, precision: float, weights: Tensor | None = None) -> Posterior:
    """The Laplace approximation of a linear head's posterior given comparisons, Bradley-Terry and a Gaussian prior.

    Sigma^-1 = precision I + sum_i s_i (1 - s_i) x_i x_i, s_i = sigmoid(w x_i).

    Args:
        x: [P, D], features of the chosen response minus those of the rejected one.
        precision: of the prior on each weight, around 0, beside the sum of the pairs' log-likelihoods.
        weights: [D], the head as it was trained; where none is given, the posterior's maximum by Newton's method.

    Raises InputError for a precision that is not positive: without a prior some directions have no variance.
    Source: MacKay 1992; Daxberger et al. 2021, arXiv:2106.14806 (last layer).
    """
    if not precision > 0:
        raise InputError(f"laplace: precision must be more than 0; got {precision}")
    x = x.double()
    found = maximum(x, precision) if weights is None else weights.detach().to(x)
    return Posterior(found, torch.linalg.inv(_curvature(x, found, precision)))


def maximum(x: Tensor, precision: float) -> Tensor:
    """[D] the weights that maximise log-likelihood and prior together, by Newton's method with halved steps."""
    weights = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(MAX_STEPS):
        gradient = precision * weights - x.T @ torch.sigmoid(-x @ weights)
        if gradient.norm() <= TOLERANCE * max(1, len(x)):
            break
        step = torch.linalg.solve(_curvature(x, weights, precision), gradient)
        while _objective(x, weights - step, precision) > _objective(x, weights, precision) + 1e-12:
            step = step / 2
        weights = weights - step
    return weights


def features(reward: RewardModel, conversations: Iterable[Conversation]) -> Tensor:
    """[B, D] what the head reads: the last hidden vector of each conversation.

    Raises InputError for a model with numbers at tokens, whose reward is not linear in one such vector.
    """
    if reward.pooling is not None:
        raise InputError(f"{reward.name} has numbers at tokens: no single vector of a conversation makes its reward")
    with reward.learner.computing() as model:
        head = model.head("reward")
    weight, bias, num = head.weight, head.bias, head.out_features
    head.weight = nn.Parameter(torch.eye(head.in_features, dtype=weight.dtype, device=weight.device), False)
    head.register_parameter("bias", None)
    head.out_features = head.in_features  # of such a head the outputs are what it reads
    try:
        return reward.outputs(conversations)
    finally:
        head.weight, head.bias, head.out_features = weight, bias, num


def _curvature(x: Tensor, weights: Tensor, precision: float) -> Tensor:
    share = torch.sigmoid(x @ weights)
    return precision * torch.eye(x.shape[1], dtype=x.dtype) + (x * (share * (1 - share))[:, None]).T @ x


def _objective(x: Tensor, weights: Tensor, precision: float) -> Tensor:
    return precision / 2 * (weights @ weights) - nn.functional.logsigmoid(x @ weights).sum()
