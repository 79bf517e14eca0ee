"""Reward models opened by name, of any kind: one model, several as an ensemble, a policy read as a reward."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from assay.engine.catalog import local_path
from assay.engine.load import DType
from assay.rewards.adapters import AdapterEnsemble, adapter_folders
from assay.rewards.ensemble import Ensemble
from assay.rewards.implicit import PREFIX, ImplicitReward
from assay.rewards.model import Reward, RewardModel
from assay.rewards.readout import Readout, Rule
from assay.settings import InputError

RuleName = Literal["", "mean", "min", "cautious", "soft"]
"""A rule of `Readout`, or "" for what the model says itself."""


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
    for name, member in zip(names_of(spec), members, strict=True):
        if weights and member.readout.kind != "attributes":
            raise InputError(f"--reward_weights: {name} has one reward and no objectives to weigh; leave them out")
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
    kind = ImplicitReward if name.startswith(PREFIX) else AdapterEnsemble if adapter_folders(name) else RewardModel
    return kind.from_pretrained(name, dtype=dtype, token_budget=token_budget)


def names_of(spec: str) -> list[str]:
    """The names in a spec; a folder whose own name has a comma is one."""
    names = [spec] if local_path(spec).exists() else [name.strip() for name in spec.split(",")]
    if not all(names):
        raise InputError(f"--reward {spec!r}: a name between commas is empty")
    places = [str(local_path(name).resolve()) if Path(name).exists() else name for name in names]
    if twice := [name for name, place in zip(names, places, strict=True) if places.count(place) > 1]:
        raise InputError(f"--reward {spec!r}: {twice[0]} is named twice, and would agree with itself")
    return names
