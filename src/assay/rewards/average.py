"""Several reward models made into one by averaging their weights."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.engine.catalog import resolve_model
from assay.rewards.ensemble import check_same_text
from assay.rewards.model import RewardModel, read_facts
from assay.settings import InputError


@torch.no_grad()
def average(folders: Sequence[str], out: Path, weights: Sequence[float] | None = None) -> RewardModel:
    """Save to `out`, and return, the model whose weights are the mean of several models', in fp32.

    Costs what one model costs to use. The models must have been trained from the same weights, the reward's head
    among them, or their mean means nothing; then it is more robust to noisy labels and to shift than each alone.

    Args:
        folders: saved reward models of one architecture and tokenizer, read one after another.
        out: where it is saved.
        weights: shares of the models, normalised to sum to 1; evenly where there are none.

    Raises InputError that names both models and what differs.
    Source: WARM, Rame et al. 2024, arXiv:2401.12187, eq. 2.
    """
    shares = _shares(folders, weights)
    first, facts = _open(folders[0])
    if out.resolve() in [Path(resolve_model(folder).path).resolve() for folder in folders]:
        raise InputError(f"{out} is one of the models to average; name another folder")
    network = first.learner.model.network
    total = {name: shares[0] * value.double() for name, value in network.state_dict().items()}
    learned = _scaled(facts, shares[0])
    for folder, share in zip(folders[1:], shares[1:], strict=True):
        other, theirs = _open(folder)
        state = other.learner.model.network.state_dict()
        _check_alike(first, other, facts, theirs, {name: tuple(value.shape) for name, value in total.items()}, state)
        for name, value in state.items():
            total[name] += share * value.double()
        learned = {name: learned[name] + value for name, value in _scaled(theirs, share).items()}
    for name, value in network.state_dict().items():
        value.copy_(total[name])  # the sum is in fp64, so that the mean of equal weights is those weights
    kept = {name: facts[name] for name in ("base", "base_weights") if name in facts}
    told = {**kept, "average_of": list(folders), "shares": shares}
    first.save(out, {**told, "learned": {name: value.tolist() for name, value in learned.items()}})
    return RewardModel.from_pretrained(str(out), dtype="float32")


def _shares(folders: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(folders) < 2:
        raise InputError("an average needs at least two models; name them separated by commas")
    told = list(weights or [1.0] * len(folders))
    fine = all(math.isfinite(weight) and weight >= 0 for weight in told)
    if len(told) != len(folders) or not fine or sum(told) == 0:
        raise InputError(f"--weights {told}: give a number for each of the {len(folders)} models, none below 0")
    return [weight / sum(told) for weight in told]


def _open(folder: str) -> tuple[RewardModel, dict[str, Any]]:
    return RewardModel.from_pretrained(folder, dtype="float32"), read_facts(Path(resolve_model(folder).path))


def _scaled(facts: Mapping[str, Any], share: float) -> dict[str, Tensor]:
    """What was learned beside the network, times `share`."""
    learned = facts.get("learned", {})
    return {name: share * torch.tensor(value, dtype=torch.float64) for name, value in learned.items()}


def _check_alike(
    one: RewardModel,
    other: RewardModel,
    facts: Mapping[str, Any],
    theirs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    state: Mapping[str, Tensor],
) -> None:
    check_same_text(one, other)
    both = f"{one.name} and {other.name}"
    odd = sorted(shapes.keys() ^ state.keys())
    odd += [name for name, value in state.items() if name in shapes and tuple(value.shape) != shapes[name]]
    if odd:
        raise InputError(f"{both} are not of one architecture: {odd[0]} differs; average models of one kind")
    if (one.readout, one.pooling) != (other.readout, other.pooling) or facts.get("learned", {}).keys() != theirs.get(
        "learned", {}
    ).keys():
        raise InputError(f"{both} read their outputs differently; average models of one likelihood")
    if "annotators" in facts or "annotators" in theirs:
        raise InputError(f"{both} tell people apart, each in an order of its own; average models that do not")
    started = facts.get("base_weights"), theirs.get("base_weights")
    if None not in started and started[0] != started[1]:
        raise InputError(f"{both} were trained from different weights, so their mean means nothing; use one --model")
