"""One change at a time: what each trick of PPO-max does, in whatever world or on whatever model a run is made.

Source: the tricks of Zheng et al. 2023, arXiv:2307.04964, fig. 5.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from assay.algorithms.ppo import PPOMax


@dataclass(frozen=True, slots=True)
class Trial:
    """A run to make: the algorithm, and what is told to the run beside it (where policy and critic start, ...)."""

    algorithm: PPOMax = field(default_factory=PPOMax)
    max_norm: float = 1.0  # of the gradient
    critic_alone: int = 8  # optimiser steps
    critic_start: str = "reward"  # or "policy"
    policy_start: str = "reference"  # or "uniform": no supervised model to start from


FLIPS: Mapping[str, Mapping[str, Any]] = {
    "no KL": {"kl_coef": 0.0},
    "no reward normalisation": {"reward_norm": "none"},
    "reward scaling only": {"reward_norm": "scale"},
    "no reward clip": {"reward_clip": 0.0},
    "advantages whitened and cut": {"whiten_advantages": True, "advantage_clip": 0.12},
    "no value clip": {"value_clip": 0.0},
    "entropy bonus": {"entropy_coef": 0.01},
    "lambda 1": {"lam": 1.0},
    "lambda 0": {"lam": 0.0},
    "no ratio clip": {"clip_low": 1.0, "clip_high": 1e6},
    "sampler not corrected": {"sampler_clip": 0.0},
    "no gradient clip": {"max_norm": 1e9},
    "text beside it": {"ptx_coef": 0.5},
    "critic not pretrained": {"critic_alone": 0},
    "critic from the policy": {"critic_start": "policy"},
    "policy from nothing": {"policy_start": "uniform"},
}
"""Name -> what is changed: fields of the algorithm, or of the trial."""


def trials(base: Trial, flips: Mapping[str, Mapping[str, Any]] = FLIPS) -> dict[str, Trial]:
    """The base, called "ppo_max", and every trial that differs from it by one flip."""
    found = {"ppo_max": base}
    known = {one.name for one in fields(base.algorithm)}
    for name, changed in flips.items():
        own = {key: value for key, value in changed.items() if key in known}
        others = {key: value for key, value in changed.items() if key not in own}
        found[name] = replace(base, algorithm=replace(base.algorithm, **own), **others)
    return found


def ablate(
    base: Trial, run: Callable[[Trial, int], Mapping[str, float]], seeds: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Each trial's figures, as `run` gives them for a seed, in the mean over seeds."""
    table: dict[str, dict[str, float]] = {}
    for name, trial in trials(base).items():
        found = [run(trial, seed) for seed in seeds]
        table[name] = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
    return table


def as_markdown(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table, a row for each trial."""
    columns = list(next(iter(table.values())))
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    lines += [f"| {name} | {' | '.join(f'{row[c]:.3f}' for c in columns)} |" for name, row in table.items()]
    return "\n".join(lines) + "\n"
