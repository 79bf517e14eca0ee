"""Answers of a policy as rollouts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from assay.batch import TokenBatch, Trunks
from assay.config import DataSettings
from assay.engine.catalog import load_tokenizer, resolve_model
from assay.engine.learner import Learner
from assay.engine.load import DType, load_policy
from assay.engine.model import Model, context
from assay.engine.sample import sample
from assay.engine.samples import PLAIN, Drawing, Samples, SamplingSettings
from assay.records import Message, Prompt, Rollout
from assay.settings import InputError
from assay.stages.common import keep_fitting
from assay.stages.progress import bar
from assay.tokens.chat import Encoded, Encoder

ANSWERS_AT_ONCE = 192  # rows of one decoding step: enough to be busy, few enough for the cache


@dataclass(frozen=True, slots=True)
class Drawn:
    """Rollouts and the tensors behind them, in one order: `num` answers to each prompt, side by side.

    `own` of them, the first, are the policy's; then comes one of each further source. `failed` says of conversations
    with an environment why it broke off, "" where it did not.
    """

    rollouts: tuple[Rollout, ...]
    prompts: tuple[tuple[int, ...], ...]
    samples: Samples
    num: int
    own: int
    failed: tuple[str, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence["Drawn"]) -> "Drawn":
        """The answers of several draws to the same prompts, the policy's first."""
        if len(parts) == 1:
            return parts[0]
        num, size = sum(part.num for part in parts), len(parts[0].prompts)
        places = [[p * part.num + i for p in range(size) for i in range(part.num)] for part in parts]
        starts = [sum(len(part.rollouts) for part in parts[:i]) for i in range(len(parts))]
        order = torch.tensor(
            [
                start + places[k][p * part.num + i]
                for p in range(size)
                for k, (part, start) in enumerate(zip(parts, starts, strict=True))
                for i in range(part.num)
            ]
        )
        rollouts = [rollout for part in parts for rollout in part.rollouts]
        samples = Samples.cat([part.samples for part in parts]).select(order)
        return cls(tuple(rollouts[i] for i in order.tolist()), parts[0].prompts, samples, num, parts[0].num)

    def of_prompts(self, wanted: Sequence[int]) -> "Drawn":
        """The answers to these prompts, by their place."""
        rows = [place * self.num + i for place in wanted for i in range(self.num)]
        samples = self.samples.select(torch.tensor(rows, dtype=torch.long))
        prompts = tuple(self.prompts[place] for place in wanted)
        return Drawn(tuple(self.rollouts[row] for row in rows), prompts, samples, self.num, self.own)

    def together(self, other: "Drawn") -> "Drawn":
        """With the answers to other prompts after these."""
        samples = Samples.cat([self.samples, other.samples])
        return Drawn(self.rollouts + other.rollouts, self.prompts + other.prompts, samples, self.num, self.own)

    @property
    def source(self) -> Tensor:
        """[B] 0 for the policy's answers, k for those of the k-th further source."""
        return (torch.arange(self.num) - self.own + 1).clamp(min=0).repeat(len(self.prompts))

    def batch(self, rewards: Sequence[float]) -> TokenBatch:
        """What an algorithm trains on: every token counts that the policy wrote."""
        ids, lengths = self.samples.ids, self.samples.lengths
        columns: dict[str, Any] = {"mask": torch.arange(ids.shape[1]) < lengths[:, None], **self.samples.columns}
        if self.own < self.num:
            columns["source"] = self.source
        return TokenBatch(
            prompts=Trunks(tuple(torch.tensor(prompt) for prompt in self.prompts)),
            ids=ids,
            lengths=lengths,
            group=torch.arange(len(self.prompts)).repeat_interleave(self.num),
            rewards=torch.tensor(rewards, dtype=torch.float32),
            sampler_logprobs=self.samples.logprobs,
            **columns,
        )


class PolicySampler:
    """A policy that answers prompts."""

    def __init__(
        self, model: Model, encoder: Encoder, settings: SamplingSettings, *, learner: Learner | None = None
    ) -> None:
        """`learner` trains the model, where one does; it knows which adapter is the policy's."""
        self.model, self.encoder, self.settings = model, encoder, settings
        self.learner = learner or Learner(model)
        self.stop = stop_ids(model, encoder)

    @classmethod
    def load(cls, name: str, settings: SamplingSettings, *, dtype: DType = "auto") -> Self:
        """From a name, folder or hub id."""
        source = resolve_model(name)
        encoder = Encoder(load_tokenizer(source))
        model = load_policy(source, dtype=dtype)
        model.config.pad_token_id = encoder.tokenizer.pad_token_id
        return cls(model.eval(), encoder, settings)

    def fitting(self, prompts: Sequence[Prompt], data: DataSettings, flag: str) -> tuple[Prompt, ...]:
        """The prompts that leave room for an answer; others are an error, or dropped and counted, as `data` says."""
        room = self.context - self.settings.max_tokens
        if room < 1:
            raise InputError(
                f"--sampling.max_tokens {self.settings.max_tokens}: the model's context is {self.context} tokens, a "
                f"prompt and its answer; sample fewer"
            )
        return fitting(prompts, self.encoder, room, data, flag)

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return context(self.model.config)

    def sample(
        self, prompts: Sequence[Prompt], num: int, generator: torch.Generator, title: str = "sampling"
    ) -> tuple[Rollout, ...]:
        """`num` answers to each prompt, those of one prompt side by side."""
        at_once = max(1, ANSWERS_AT_ONCE // num)
        at_once = math.ceil(len(prompts) / math.ceil(len(prompts) / at_once))  # in even parts: no small one at the end
        found: list[Rollout] = []
        with bar(title, len(prompts)) as progress:
            for first in range(0, len(prompts), at_once):
                found += self.draw(prompts[first : first + at_once], num, generator).rollouts
                progress.update(min(first + at_once, len(prompts)), {})
        return tuple(found)

    def draw(
        self,
        prompts: Sequence[Prompt],
        num: int,
        generator: torch.Generator,
        *,
        drawing: Drawing = PLAIN,
        learner: Learner | None = None,
    ) -> Drawn:
        """One batch of answers, by the policy or by another learner of the same vocabulary."""
        encoded = tuple(self.encoder.prompt(prompt) for prompt in prompts)
        self._check(prompts, encoded)
        with (learner or self.learner).computing() as model:
            samples = sample(model, encoded, num, self.settings, stop=self.stop, generator=generator, drawing=drawing)
        logprobs = _rows(samples.logprobs, samples.lengths)
        rollouts = tuple(
            Rollout(
                prompt=prompts[row // num],
                response=(Message("text" if prompts[row // num].is_text else "assistant", self.encoder.spoken(ids)),),
                stop="stop" if stopped else "length",
                ids=ids,
                sampler_logprobs=logprobs[row],
            )
            for row, (ids, stopped) in enumerate(zip(samples.rows(), samples.stopped.tolist(), strict=True))
        )
        return Drawn(rollouts, encoded, samples, num, num)

    def _check(self, prompts: Sequence[Prompt], encoded: Sequence[tuple[int, ...]]) -> None:
        for prompt, ids in zip(prompts, encoded, strict=True):
            if len(ids) + self.settings.max_tokens > self.context:
                raise InputError(
                    f"prompt {prompt.id} has {len(ids)} tokens; with {self.settings.max_tokens} of an answer it passes "
                    f"the model's context of {self.context}: leave it out or sample fewer tokens"
                )


def fitting(
    prompts: Sequence[Prompt], encoder: Encoder, room: int, data: DataSettings, flag: str
) -> tuple[Prompt, ...]:
    """The prompts of at most `room` tokens; others are an error, or dropped and counted, as `data` says."""

    def encode(prompt: Prompt) -> list[Encoded]:
        return [Encoded(encoder.prompt(prompt), (), ())]

    return tuple(prompt for prompt, _ in keep_fitting(prompts, encode, room, data, flag))


def stop_ids(model: Model, encoder: Encoder) -> list[int]:
    """The tokenizer's end of sequence and what the model's generation settings add."""
    told: Any = getattr(model.network.generation_config, "eos_token_id", None) or []
    return sorted({encoder.eos, *([told] if isinstance(told, int) else told)})


def _rows(values: Tensor, lengths: Tensor) -> list[tuple[float, ...]]:
    return [tuple(row[:length]) for row, length in zip(values.tolist(), lengths.tolist(), strict=True)]
