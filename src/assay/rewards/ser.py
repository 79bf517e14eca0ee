"""Self-evolved reward learning: a reward model labels pairs that it is sure of and learns from its own labels.

Source: Huang et al. 2025, arXiv:2411.00418, and its published code, from which the filters and their bounds come.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from assay.settings import InputError, Settings

Model = TypeVar("Model")
Pair = TypeVar("Pair")

Status = Literal["auto", "s1", "s2", "union"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SER(Settings):
    """Which of its own labels a model may learn from, and how often.

    p = sigmoid(reward). Filter s1 takes a pair whose one answer is good (p > tau_high) and the other bad (p < tau_low);
    s2 one whose answers differ (|p1 - p2| > tau_delta). status: "auto" takes s1 where it finds `min_selected` pairs,
    else s2 where that does, else stops (the paper); "union" takes either (the published code).

    s1 depends on the reward's offset, which comparisons leave open; `centre` takes the pool's mean reward off first.
    """

    tau_high: float = 0.55
    tau_low: float = 0.45
    tau_delta: float = 0.3
    status: Status = "auto"
    min_selected: int = 600  # fewer: the loop stops, and the model stays what it was
    max_loops: int = 3
    keep_seed: bool = True  # people's labels stay among what is learned from
    warm_start: bool = True  # each loop goes on from the last model, on its new labels; else anew, on all so far
    centre: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.tau_low <= self.tau_high <= 1:
            raise InputError(f"tau_low ({self.tau_low}) and tau_high ({self.tau_high}) must rise within [0, 1]")
        if not 0 <= self.tau_delta <= 1:
            raise InputError(f"tau_delta must lie in [0, 1]; got {self.tau_delta}")


@dataclass(frozen=True, slots=True)
class Loop:
    """What one loop did: `num` pairs learned from, by which filter, out of a pool of `pool`.

    precision: share of the labels that are right, where the truth is known; whole: the same over the whole pool, where
    a tie of rewards counts half.
    """

    index: int
    pool: int
    num: int
    status: str
    precision: float
    whole: float


@dataclass(frozen=True, slots=True)
class Evolved(Generic[Model]):
    """The last model, and what each loop did; `stopped` says why there were no more."""

    model: Model
    loops: tuple[Loop, ...]
    stopped: str


def passes(rewards: Tensor, settings: SER) -> tuple[Tensor, Tensor]:
    """[N] whether filter s1, and filter s2, takes each pair of rewards [N, 2]. All comparisons are strict."""
    if settings.centre:
        rewards = rewards - rewards.mean()
    p = torch.sigmoid(rewards)
    good, bad = p > settings.tau_high, p < settings.tau_low
    first = (good[:, 0] & bad[:, 1]) | (good[:, 1] & bad[:, 0])
    return first, (p[:, 0] - p[:, 1]).abs() > settings.tau_delta


def choose(rewards: Tensor, settings: SER) -> tuple[Tensor, Tensor, str]:
    """Places of the pairs to learn from, whether their second answer is the better, and the filter that took them."""
    first, second = passes(rewards, settings)
    candidates = {"s1": first, "s2": second, "union": first | second}
    order = ("s1", "s2") if settings.status == "auto" else (settings.status,)
    for name in order:
        places = candidates[name].nonzero().squeeze(1)
        if len(places) >= max(1, settings.min_selected):
            return places, rewards[places, 1] > rewards[places, 0], name
    return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool), ""


def evolve(
    model: Model,
    seed: Sequence[Pair],
    pool: Sequence[Pair],
    settings: SER,
    *,
    score: Callable[[Model, Sequence[Pair]], Tensor],
    fit: Callable[[Model | None, Sequence[Pair]], Model],
    swap: Callable[[Pair], Pair],
    right: Callable[[Pair], bool] | None = None,
    report: Callable[[Loop, Model], None] | None = None,
) -> Evolved[Model]:
    """Label, select, refit, until a loop selects too little.

    `model` was fitted to the `seed`; `pool` holds pairs whose labels are not looked at. `score` gives rewards [N, 2],
    `fit` a model from pairs with the better answer first, starting at a model or anew (None); `swap` turns a pair.
    `right` says of a pair whether its first answer is truly the better: for the loops' precision alone.
    """
    pool, learned = list(pool), []
    loops: list[Loop] = []
    for index in range(1, settings.max_loops + 1):
        if not pool:
            return Evolved(model, tuple(loops), "no pairs are left")
        rewards = score(model, pool)
        places, turned, status = choose(rewards, settings)
        if not status:
            return Evolved(model, tuple(loops), f"loop {index} found fewer than {settings.min_selected} sure pairs")
        chosen = [swap(pool[i]) if turn else pool[i] for i, turn in zip(places.tolist(), turned.tolist(), strict=True)]
        precision, whole = math.nan, math.nan
        if right is not None:
            precision = sum(map(right, chosen)) / len(chosen)
            sides = zip(pool, rewards.tolist(), strict=True)
            whole = sum(0.5 if a == b else right(swap(p) if b > a else p) for p, (a, b) in sides) / len(pool)
        loop = Loop(index, len(pool), len(chosen), status, precision, whole)
        learned += chosen
        kept = list(seed) if settings.keep_seed else []
        model = fit(model, kept + chosen) if settings.warm_start else fit(None, kept + learned)
        taken = set(places.tolist())
        pool = [pair for i, pair in enumerate(pool) if i not in taken]
        loops.append(loop)
        if report is not None:
            report(loop, model)
    return Evolved(model, tuple(loops), f"{settings.max_loops} loops were run")
