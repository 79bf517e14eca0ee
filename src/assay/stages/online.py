"""Batches that a policy makes itself: sample, score, hand to the algorithm."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from assay.batch import TokenBatch
from assay.config import PolicyConfig
from assay.feedback.oracles import Oracle
from assay.records import Prompt, Rollout
from assay.rewards.instructed import Instructed
from assay.rewards.model import Reward
from assay.rewards.rules import Combined, combine, fill_rewards
from assay.settings import InputError
from assay.stages.common import data_columns
from assay.stages.sampling import PolicySampler, fitting
from assay.train.batches import Shuffled

TEMPLATE_TOKENS = 16  # room for what a template adds around an answer


class Rewards:
    """A learned reward and programmatic ones, added up with their weights; every part is kept."""

    def __init__(
        self, model: Reward | None, weight: float, rules: Combined | None, identity: Mapping[str, Any]
    ) -> None:
        self.model, self.weight, self.rules, self.identity = model, weight, rules, dict(identity)

    def fitting(self, prompts: Sequence[Prompt], config: PolicyConfig) -> tuple[Prompt, ...]:
        """The prompts whose longest answers the reward model can read; others are an error, or dropped and counted."""
        if self.model is None:
            return tuple(prompts)
        room = self.model.room - config.sampling.max_tokens - TEMPLATE_TOKENS
        return fitting(prompts, self.model.encoder, room, config.data, "data")

    def __call__(self, rollouts: Sequence[Rollout]) -> tuple[list[float], dict[str, list[float]]]:
        """The sums, one per rollout, and each part by name before weighting."""
        parts: dict[str, list[float]] = {}
        totals = [0.0] * len(rollouts)
        if self.model is not None:
            outputs = self.model.outputs([(rollout.prompt, rollout.response) for rollout in rollouts])
            parts["model"] = self.model.readout.reward(outputs).tolist()
            if (unsure := self.model.readout.uncertainty(outputs)) is not None:
                parts["model_uncertainty"] = unsure.tolist()
            totals = [self.weight * reward for reward in parts["model"]]
        if self.rules is not None:
            filled = fill_rewards(self.rules, rollouts)
            totals = [total + rollout.reward for total, rollout in zip(totals, filled, strict=True)]
            for _, rule in self.rules.parts:
                parts[rule.name] = [rollout.reward_parts[rule.name] for rollout in filled]
        return totals, parts


def load_rules(places: Sequence[str]) -> Combined | None:
    """From "0.5*file.py:function", or "file.py:function" with weight 1; None where there are none."""
    parts: list[tuple[float, str]] = []
    for told in places:
        weight, star, place = told.rpartition("*")
        try:
            parts.append((float(weight) if star else 1.0, place))
        except ValueError:
            raise InputError(f"--rules {told!r}: write weight*file.py:function, weight a number") from None
    return combine(parts) if parts else None


class Rollouts:
    """One batch a step: prompts in a seeded order, several answers to each, scored."""

    def __init__(
        self, sampler: PolicySampler, prompts: Sequence[Prompt], rewards: Rewards, config: PolicyConfig
    ) -> None:
        self.sampler, self.rewards, self.num_answers = sampler, rewards, config.num_answers
        self.prompts = Shuffled(prompts, config.batch_size, seed=config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.columns = config.algorithm.columns
        self.facts: dict[str, float] = {}

    def next(self) -> dict[str, TokenBatch]:
        """As `Batches`; what was sampled is summed up in `facts`."""
        began = time.perf_counter()
        drawn = self.sampler.draw(self.prompts.next(), self.num_answers, self.generator)
        sampled = time.perf_counter()
        totals, parts = self.rewards(drawn.rollouts)
        scored = time.perf_counter()
        lengths = [float(len(rollout.ids)) for rollout in drawn.rollouts]
        groups = [totals[i : i + self.num_answers] for i in range(0, len(totals), self.num_answers)]
        self.facts = {
            "reward": statistics.fmean(totals),
            "reward_std": statistics.fmean(statistics.pstdev(group) for group in groups),
            "frac_reward_zero_std": statistics.fmean(float(max(group) == min(group)) for group in groups),
            **{f"rewards/{name}/mean": statistics.fmean(values) for name, values in parts.items()},
            "length_mean": statistics.fmean(lengths),
            "share_cut": statistics.fmean(float(rollout.stop == "length") for rollout in drawn.rollouts),
            "seconds_sampling": sampled - began,
            "seconds_scoring": scored - sampled,
        }
        batch = drawn.batch(totals)
        per_answer = [rollout.prompt for rollout in drawn.rollouts]
        return {"main": batch.fill(declared=self.columns, **data_columns(per_answer, self.columns))}

    def state_dict(self) -> dict[str, Any]:
        """As `Batches`."""
        state = {"drawn": self.prompts.drawn, "generator": self.generator.get_state()}
        model = self.rewards.model
        return {**state, "principles": model.num_drawn} if isinstance(model, Instructed) else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Batches`."""
        self.prompts.drawn = state["drawn"]
        self.generator.set_state(state["generator"])
        if isinstance(self.rewards.model, Instructed):
            self.rewards.model.num_drawn = state["principles"]


class Watch:
    """The truth on held-out prompts while a policy trains: looked at, never trained on."""

    def __init__(self, sampler: PolicySampler, prompts: Sequence[Prompt], oracle: Oracle, *, seed: int) -> None:
        self.sampler, self.prompts, self.oracle, self.seed = sampler, prompts, oracle, seed

    def look(self) -> dict[str, float]:
        """The oracle's mean over one answer to each prompt; the same draws every time."""
        generator = torch.Generator().manual_seed(self.seed)
        rollouts = self.sampler.draw(self.prompts, 1, generator).rollouts
        rewards = self.oracle([r.prompt for r in rollouts], [r.response for r in rollouts])
        return {"oracle": statistics.fmean(rewards)}
