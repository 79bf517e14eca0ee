"""Exact fits in small worlds: a likelihood maximised to machine precision, the whole data in one batch."""

from collections.abc import Mapping

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.engine.weights import item_weights
from assay.lab.tabular import TabularModel
from assay.rewards.likelihoods import Likelihood


def maximise(
    model: TabularModel,
    likelihood: Likelihood,
    batch: TokenBatch,
    *,
    prior: float = 0.0,
    max_iterations: int = 500,
) -> dict[str, Tensor]:
    """Fit rewards (and what the likelihood learns) by L-BFGS; returns the learned numbers by name.

    `prior` is the precision of a Gaussian on the reward weights around 0, for the mean loss: MAP instead of maximum
    likelihood (Chaudhari et al. 2024, arXiv:2404.08555, sec. 2.1).
    """
    learned = {name: value.clone().double().requires_grad_() for name, value in likelihood.learned.items()}
    parameters = [model.reward_weights, *learned.values()]
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=max_iterations,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = loss_of(model, likelihood, batch, learned) + prior / 2 * (model.reward_weights**2).sum()
        total.backward()
        return total

    optimiser.step(closure)
    return {name: value.detach() for name, value in learned.items()}


def loss_of(
    model: TabularModel, likelihood: Likelihood, batch: TokenBatch, learned: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The mean negative log-likelihood, as the learner weighs it."""
    (term,) = likelihood.losses()
    out = model(batch, term.reads).fill(parameters=dict(learned or {}))
    values, _ = term.fn(out, batch)
    return (item_weights(batch, term.reduction).to(values.dtype) * values).sum()
