"""Reward models opened by name: one, or several as an ensemble, behind the one interface.

Members are separate full models: an ensemble of M takes M times the memory and the time of one.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from assay.engine.load import DType
from assay.rewards.implicit import PREFIX, ImplicitReward
from assay.rewards.model import Reward, RewardModel
from assay.rewards.readout import Readout, Rule
from assay.settings import InputError
from assay.tokens.chat import Encoded

RuleName = Literal["", "mean", "min", "cautious", "soft"]
"""A rule of `Readout`, or "" for what the model says itself."""


class Ensemble(Reward):
    """Several reward models, each with one opinion of the reward; uncertainty is their standard deviation.

    Source: Coste et al. 2024, arXiv:2310.02743, sec. 3.
    """

    def __init__(self, members: Sequence[Reward], readout: Readout) -> None:
        """Raises InputError where members read conversations differently: their rewards would not be of one text."""
        self.members, self.readout = tuple(members), readout
        self.name = ",".join(member.name for member in members)
        self.encoder = members[0].encoder
        for other in members[1:]:
            check_same_text(members[0], other)

    @property
    def context(self) -> int:
        """Tokens that every member reads."""
        return min(member.context for member in self.members)

    def outputs_encoded(self, encoded: Sequence[Encoded]) -> Tensor:
        """[B, M] each member's reward."""
        return torch.stack([member.readout.reward(member.outputs_encoded(encoded)) for member in self.members], -1)


def open_reward(
    spec: str,
    *,
    rule: RuleName = "",
    penalty: float = 1.0,
    weights: Sequence[float] = (),
    dtype: DType = "auto",
    token_budget: int = 8192,
) -> Reward:
    """The reward model that `spec` names, or the ensemble of several names separated by commas.

    Args:
        spec: folders or hub ids; "implicit:POLICY:REFERENCE" for a policy read as a reward (`rewards.implicit`).
        rule: how opinions, of models or of the heads of one model, become the reward; see `Readout`.
        penalty: of the rules "cautious" and "soft".
        weights: of the attributes of each model, where they have any, instead of its own.
        dtype: each model computes in it.
        token_budget: tokens that a model computes at once.

    Raises InputError where members differ in tokenizer or template, or a rule needs opinions that a model has not.
    """
    members = [_open(name, dtype, token_budget) for name in names_of(spec)]
    for member in members:
        member.readout = replace(member.readout, weights=tuple(weights) or member.readout.weights)
    if len(members) > 1:
        return Ensemble(members, Readout(kind="ensemble", rule=cast(Rule, rule or "mean"), penalty=penalty))
    (only,) = members
    if rule not in ("", "mean") and only.readout.kind in ("single", "attributes"):
        raise InputError(
            f"--reward_rule {rule}: {spec} has one opinion; name several models, or train one with --heads 4"
        )
    if rule:
        only.readout = replace(only.readout, rule=rule, penalty=penalty)
    return only


def _open(name: str, dtype: DType, token_budget: int) -> Reward:
    kind = ImplicitReward if name.startswith(PREFIX) else RewardModel
    return kind.from_pretrained(name, dtype=dtype, token_budget=token_budget)


def names_of(spec: str) -> list[str]:
    """The names in a spec; a folder whose own name has a comma is one."""
    names = [spec] if Path(spec).expanduser().exists() else [name.strip() for name in spec.split(",")]
    if not all(names):
        raise InputError(f"--reward {spec!r}: a name between commas is empty")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--reward {spec!r}: {twice[0]} is named twice, and would agree with itself")
    return names


def check_same_text(one: Reward, other: Reward) -> None:
    """Raises InputError that names both models and what of their tokenizers or templates differs."""
    mine, theirs = one.encoder.fingerprint(), other.encoder.fingerprint()
    if differing := [name for name in mine if mine[name] != theirs[name]]:
        raise InputError(
            f"{one.name} and {other.name} do not read the same text: the {', '.join(differing)} of their tokenizers "
            f"differ; use models of one tokenizer and template"
        )
