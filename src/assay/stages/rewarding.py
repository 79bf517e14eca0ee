"""What answers are worth: a learned reward and programmatic ones, their faults handled; and what tokens are paid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.config import DataSettings, PolicyConfig
from assay.losses.credit import at_last_token, redistribute, shaping
from assay.records import Prompt, Rollout, reply
from assay.rewards.apart import Apart, FaultSettings
from assay.rewards.dense import at_sampled_tokens
from assay.rewards.instructed import Instructed
from assay.rewards.judge import Judge, LanguageModel
from assay.rewards.model import Reward
from assay.rewards.rules import Several, combine, fill_rewards
from assay.settings import InputError
from assay.shapes import TokenFloat
from assay.stages.common import all_finite, keep_fitting
from assay.stages.progress import say
from assay.stages.sampling import fitting
from assay.tokens.chat import Encoded, Encoder

TEMPLATE_TOKENS = 16  # room for what a template adds around an answer
REASONS = 5  # told of rewards that could not be had
T = TypeVar("T")


class Reads(NamedTuple):
    """A model that reads conversations beside the policy."""

    name: str
    room: int  # tokens
    encoder: Encoder


@dataclass(frozen=True, slots=True)
class Scored:
    """The rewards of answers, and what they are made of."""

    totals: list[float]
    parts: dict[str, list[float]]
    failed: list[bool]  # whether the rewards of an answer's prompt could not be had
    at_tokens: list[Tensor] = field(default_factory=list)  # what `Dense` reads at each answer's tokens, where it does

    def differing(self, num: int, left_out: Sequence[bool]) -> list[int]:
        """Which prompts' `num` answers do not all have one reward, nor are all `left_out` of what is trained on."""
        groups = [slice(i, i + num) for i in range(0, len(self.totals), num)]
        teaches = [len(set(self.totals[group])) > 1 and not all(left_out[group]) for group in groups]
        return [place for place, does in enumerate(teaches) if does]

    def of_prompts(self, wanted: Sequence[int], num: int) -> "Scored":
        """The answers to these prompts."""
        rows = [place * num + i for place in wanted for i in range(num)]
        parts = {name: [values[row] for row in rows] for name, values in self.parts.items()}
        at_tokens = [self.at_tokens[row] for row in rows] if self.at_tokens else []
        return Scored([self.totals[row] for row in rows], parts, [self.failed[row] for row in rows], at_tokens)

    def together(self, other: "Scored") -> "Scored":
        """With those of other answers."""
        parts = {name: values + other.parts[name] for name, values in self.parts.items()}
        at_tokens = self.at_tokens + other.at_tokens
        return Scored(self.totals + other.totals, parts, self.failed + other.failed, at_tokens)


class Dense:
    """What each sampled token is paid, by a model with rewards at tokens.

    "rewards": what the model says; "attributions": shares of the answer's reward, what is left over in even parts;
    "potentials": the answer's reward at its end, and the change of the sum so far, which pays nothing in all.
    """

    def __init__(self, model: Reward, kind: str, encoder: Encoder, *, gamma: float = 1.0, weight: float = 1.0) -> None:
        """`gamma` is the algorithm's: potentials shape without harm under that one alone.

        `weight` is what the model's numbers count: as much as in the answers' rewards, where it gives those too.
        """
        self.model, self.kind, self.encoder, self.gamma, self.weight = model, kind, encoder, gamma, weight

    def read(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """[T] for each: what the model says of its tokens. InputError where it cannot, or says no finite number."""
        found = at_sampled_tokens(self.model, rollouts, self.encoder)
        sums = [float(values.sum()) for values in found]
        all_finite(sums, [rollout.prompt.id for rollout in rollouts], f"{self.model.name}, at tokens,")
        return found

    def __call__(self, read: Sequence[Tensor], batch: TokenBatch) -> TokenFloat:
        """[B, T] of what was read."""
        told = torch.zeros(batch.ids.shape)
        for row, values in enumerate(read):
            told[row, : len(values)] = self.weight * values
        if self.kind == "rewards":
            return told
        if self.kind == "attributions":
            return redistribute(batch.rewards, told, batch.mask)
        before = told.cumsum(1) - told  # the state before a token has been paid for the ones before it
        return at_last_token(batch.rewards, batch.mask) + shaping(before, batch.mask, self.gamma)


class Rewards:
    """A learned reward and programmatic ones, added up with their weights; every part is kept."""

    def __init__(
        self,
        model: Reward | None,
        weight: float,
        rules: Several | None,
        identity: Mapping[str, Any],
        faults: FaultSettings | None = None,
        judge: Judge | None = None,
    ) -> None:
        """`judge` compares a prompt's answers two by two."""
        self.judge = judge
        self.model, self.weight, self.rules, self.identity = model, weight, rules, dict(identity)
        self.faults = faults or FaultSettings()
        self.why = ""  # the last reason why rewards could not be had
        self.told: set[str] = set()  # reasons that were said

    def __call__(self, rollouts: Sequence[Rollout], num: int) -> Scored:
        """What the answers, `num` to each prompt, are worth: the sums, and each part by name before weighting.

        InputError, naming the prompt, where an opinion cannot be had or is no finite number.
        """
        parts: dict[str, list[float]] = {}
        totals, failed = [0.0] * len(rollouts), [False] * len(rollouts)
        if self.model is not None:
            opinions, failed = self._by_prompt(self._by_model, rollouts, num, lambda _: (0.0, 0.0))
            parts["model"] = [reward for reward, _ in opinions]
            if self.model.readout.kind not in ("single", "attributes"):
                parts["model_uncertainty"] = [unsure for _, unsure in opinions]
            totals = [self.weight * reward for reward in parts["model"]]
        if self.judge is not None:
            parts["judge"], wrong = self._by_prompt(self._judged, rollouts, num, lambda _: 0.0)
            failed = [one or other for one, other in zip(failed, wrong, strict=True)]
            totals = [total + opinion for total, opinion in zip(totals, parts["judge"], strict=True)]
        if self.rules is not None:
            filled, wrong = self._by_prompt(self._filled, rollouts, num, lambda rollout: replace(rollout, reward=0.0))
            failed = [one or other for one, other in zip(failed, wrong, strict=True)]
            totals = [total + rollout.reward for total, rollout in zip(totals, filled, strict=True)]
            for _, rule in self.rules.parts:
                parts[rule.name] = [rollout.reward_parts.get(rule.name, 0.0) for rollout in filled]
        return Scored(totals, parts, failed)

    def with_tokens(self, scored: Scored, dense: Dense, rollouts: Sequence[Rollout], num: int) -> Scored:
        """And what is read at tokens; a prompt of which that fails has failed."""
        read, wrong = self._by_prompt(dense.read, rollouts, num, lambda rollout: torch.zeros(len(rollout.ids)))
        failed = [one or other for one, other in zip(scored.failed, wrong, strict=True)]
        return replace(scored, failed=failed, at_tokens=read)

    def _by_prompt(
        self,
        score: Callable[[Sequence[Rollout]], Sequence[T]],
        rollouts: Sequence[Rollout],
        num: int,
        instead: Callable[[Rollout], T],
    ) -> tuple[list[T], list[bool]]:
        """What `score` says of the rollouts, and which of them belong to a prompt of which it could not say it.

        A failed batch is asked again prompt by prompt, so that one prompt's fault costs no other prompt.
        """
        try:
            return list(score(rollouts)), [False] * len(rollouts)
        except InputError as error:
            if self.faults.then == "stop":
                raise InputError(f"{error} (or go on without such prompts: --faults.then mask)") from error
        found: list[T] = []
        failed: list[bool] = []
        for first in range(0, len(rollouts), num):
            group = rollouts[first : first + num]
            try:
                found += score(group)
                failed += [False] * len(group)
            except InputError as error:
                self.note(str(error))
                found += map(instead, group)
                failed += [True] * len(group)
        return found, failed

    def note(self, why: str) -> None:
        """Say a new reason why a prompt's rewards cannot be had, the first few of them."""
        self.why = why
        if why not in self.told and len(self.told) < REASONS:
            self.told.add(why)
            say(f"a prompt goes without rewards: {why}")

    def _by_model(self, rollouts: Sequence[Rollout]) -> list[tuple[float, float]]:
        """The model's reward of each answer and, where it knows one, its standard deviation."""
        assert self.model is not None
        if isinstance(self.model, Instructed):
            self.model.anew()
        outputs = self.model.outputs([(rollout.prompt, rollout.response) for rollout in rollouts])
        rewards, unsure = self.model.readout.reward(outputs), self.model.readout.uncertainty(outputs)
        both = [rewards.tolist(), [0.0] * len(rollouts) if unsure is None else unsure.tolist()]
        for name, opinions in zip(("model", "model_uncertainty"), both, strict=True):
            all_finite(opinions, [rollout.prompt.id for rollout in rollouts], f"rewards/{name}")
        return list(zip(*both, strict=True))

    def _judged(self, rollouts: Sequence[Rollout]) -> list[float]:
        assert self.judge is not None
        return all_finite(judged(self.judge, rollouts), [r.prompt.id for r in rollouts], "rewards/judge")

    def _filled(self, rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
        rules = self.rules
        assert rules is not None
        return self.faults.tried(lambda: fill_rewards(rules, rollouts))


def readable(
    model: Reward | Reads | None,
    prompts: Sequence[Prompt],
    config: PolicyConfig,
    context: int,
    data: DataSettings,
    flag: str = "data",
) -> tuple[Prompt, ...]:
    """The prompts whose longest answers a reward model or a critic reads; others are an error, or dropped and counted.

    `context` is the policy's, beyond which no conversation goes.
    """
    if model is None or (config.environment and context <= model.room):
        return tuple(prompts)
    turns = config.max_turns if config.environment else 1
    room = model.room - turns * (config.sampling.max_tokens + TEMPLATE_TOKENS)
    if room < 1:
        told = f"{turns} turns of " if turns > 1 else ""
        raise InputError(
            f"--sampling.max_tokens {config.sampling.max_tokens}: {told}such answers do not fit the {model.room} "
            f"tokens that {model.name} reads; sample fewer"
        )
    return fitting(prompts, model.encoder, room, data, flag)


def judgeable(judge: Judge | None, prompts: Sequence[Prompt], config: PolicyConfig) -> tuple[Prompt, ...]:
    """The prompts of which the judge can be asked with two of the longest answers, as `readable`."""
    if judge is None or not isinstance(judge.model, LanguageModel):
        return tuple(prompts)
    model, nothing = judge.model, reply("")
    room = model.context - 2 * (config.sampling.max_tokens + TEMPLATE_TOKENS)

    def asked(prompt: Prompt) -> tuple[Encoded, Encoded]:
        return model.encode(judge.question(prompt, nothing, nothing))

    return tuple(prompt for prompt, _ in keep_fitting(prompts, asked, room, config.data))


def judged(judge: Judge, rollouts: Sequence[Rollout]) -> list[float]:
    """A reward for each answer, compared with its neighbour: half the judge's log-odds, plus and minus."""
    first, second = rollouts[0::2], rollouts[1::2]
    prompts = [rollout.prompt for rollout in first]
    odds = judge.compare(prompts, [r.response for r in first], [r.response for r in second]).log_odds
    return torch.stack([odds / 2, -odds / 2], 1).flatten().tolist()


def load_rules(places: Sequence[str], timeout: float = 0.0) -> Several | None:
    """From "0.5*file.py:function", or "file.py:function" with weight 1; None where there are none.

    With a `timeout` they run in a process of their own.
    """
    parts: list[tuple[float, str]] = []
    for told in places:
        weight, star, place = told.rpartition("*")
        try:
            parts.append((float(weight) if star else 1.0, place))
        except ValueError:
            raise InputError(f"--rules {told!r}: write weight*file.py:function, weight a number") from None
    if not parts:
        return None
    rules = combine(parts)
    return Apart(rules, [place for _, place in parts], timeout) if timeout else rules
