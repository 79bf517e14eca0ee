"""Learned reward models and the scoring contract: one `score` for training, audit, policies and users.

It always sees the whole rendered conversation, what the template adds after the answer included, and reads the
reward at the last real token. An answer that a policy sampled is scored by its text, so that sampled ids, their text
and plain transformers on `apply_chat_template` give one number.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.engine.catalog import load_tokenizer, resolve_model
from assay.engine.export import export
from assay.engine.learner import Learner
from assay.engine.load import DType, load_reward
from assay.engine.model import context
from assay.records import Message, Prompt, Response
from assay.rewards.pooling import Pooling
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.tokens.chat import Encoded, Encoder, collate

FINGERPRINT = "assay.json"
GROUPS_AT_ONCE = 64  # prompts tokenized and scored together

Conversation = tuple[Prompt, Response] | Sequence[Mapping[str, Any]]
"""A prompt and a response, or a message list whose last turns are the assistant's."""


class Reward(ABC):
    """What policies, audits and users ask of a learned reward, whether one model gives it or several do."""

    name: str
    encoder: Encoder  # how conversations are rendered for it
    readout: Readout  # how its numbers become the reward

    @property
    @abstractmethod
    def context(self) -> int:
        """Tokens a conversation may have."""

    @property
    def room(self) -> int:
        """Tokens that a conversation may have before anything is added to it."""
        return self.context

    @abstractmethod
    def outputs_encoded(self, encoded: Sequence[Encoded]) -> Tensor:
        """[B, L] the numbers for encoded conversations, which `readout` turns into rewards."""

    def encode(self, conversation: Conversation) -> Encoded:
        """Ids of the whole rendered conversation."""
        prompt, response = as_pair(conversation)
        return self.encoder.conversation(prompt, response)

    def score(self, conversations: Iterable[Conversation]) -> list[float]:
        """One reward per conversation, in order. Responses to one prompt are computed together.

        Raises InputError for a conversation longer than the model's context: nothing is cut.
        """
        return self.readout.reward(self.outputs(conversations)).tolist()

    def uncertainty(self, conversations: Iterable[Conversation]) -> list[float] | None:
        """The standard deviation of each reward, in order; None for a model that knows none."""
        found = self.readout.uncertainty(self.outputs(conversations))
        return None if found is None else found.tolist()

    def token_rewards(self, conversations: Iterable[Conversation]) -> list[Tensor]:
        """[T] the reward of each token of each answer; InputError where a reward is that of a whole conversation."""
        raise InputError(f"{self.name} has one reward a conversation, none for its tokens")

    def outputs(self, conversations: Iterable[Conversation]) -> Tensor:
        """[B, L] the numbers, which `readout` turns into rewards."""
        return self.outputs_encoded(self.encode_all(conversations))

    def encode_all(self, conversations: Iterable[Conversation]) -> list[Encoded]:
        """Each conversation's ids; InputError for one that is longer than the model's context."""
        encoded = [self.encode(conversation) for conversation in conversations]
        for index, item in enumerate(encoded):
            if item.num_tokens > self.context:
                raise InputError(
                    f"conversation {index} has {item.num_tokens} tokens, the reward model's context {self.context}: "
                    f"leave it out or shorten it"
                )
        return encoded

    def score_encoded(self, encoded: Sequence[Encoded]) -> list[float]:
        """One reward per encoded conversation, in order."""
        return self.readout.reward(self.outputs_encoded(encoded)).tolist()


class RewardModel(Reward):
    """A sequence classifier, its tokenizer, how conversations are rendered for it, and how its outputs are read."""

    def __init__(
        self,
        learner: Learner,
        encoder: Encoder,
        *,
        name: str,
        readout: Readout | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        """`pooling` for a token classifier: how its numbers at tokens become those of the response."""
        self.learner, self.encoder, self.name = learner, encoder, name
        self.readout, self.pooling = readout or Readout(), pooling

    @classmethod
    def from_pretrained(cls, name: str, *, dtype: DType = "auto", token_budget: int = 8192) -> Self:
        """A folder that `save` wrote, or any classifier with one output that transformers loads.

        Raises InputError where the head is missing, or the tokenizer or template is not the one it was trained with.
        """
        source = resolve_model(name)
        encoder = Encoder(load_tokenizer(source))
        check_fingerprint(Path(source.path), encoder)
        facts = read_facts(Path(source.path))
        readout, pooling = facts.get("readout", {}), facts.get("pooling")
        model = load_reward(source, dtype=dtype, num_outputs=None if readout else 1, at_tokens=pooling is not None)
        learner = Learner(model, token_budget=token_budget)
        pool = None if pooling is None else Pooling(**pooling)
        return cls(learner, encoder, name=name, readout=readout_of(readout), pooling=pool)

    @property
    def context(self) -> int:
        """Tokens a conversation may have."""
        return context(self.learner.model.config)

    def outputs_encoded(self, encoded: Sequence[Encoded]) -> Tensor:
        """[B, L] the head's numbers for encoded conversations."""
        outputs = torch.zeros(len(encoded), self.learner.model.head("reward").out_features)
        for rows, batch in batches(encoded, self.encoder.tokenizer.pad_token_id):
            if self.pooling is None:
                outputs[rows] = self.learner.forward(batch, ("outputs",)).outputs
            else:
                numbers = self.learner.forward(batch, ("token_outputs",)).token_outputs
                counted = self.pooling.counted([encoded[row] for row in rows], self.encoder, numbers.shape[1])
                outputs[rows] = self.pooling.pooled(numbers, counted)
        return outputs

    def token_numbers(self, encoded: Sequence[Encoded]) -> list[Tensor]:
        """[T, L] the head's numbers at each token of each conversation's answer."""
        found: dict[int, Tensor] = {}
        for rows, batch in batches(encoded, self.encoder.tokenizer.pad_token_id):
            numbers = self.learner.forward(batch, ("token_outputs",)).token_outputs
            found |= {row: numbers[i, : len(encoded[row].ids)] for i, row in enumerate(rows)}
        return [found[row] for row in range(len(encoded))]

    def token_rewards(self, conversations: Iterable[Conversation]) -> list[Tensor]:
        """[T] the reward of each token of each answer, by `pooling` and `readout`; those that do not count are 0.

        Raises InputError for a model whose reward is that of a whole conversation.
        """
        if self.pooling is None:
            return super().token_rewards(conversations)
        encoded = self.encode_all(conversations)
        found: list[Tensor] = []
        for item, numbers in zip(encoded, self.token_numbers(encoded), strict=True):
            counted = self.pooling.counted([item], self.encoder, len(numbers))[0]
            found.append(torch.where(counted, self.readout.reward(self.pooling.rewards(numbers[None])[0]), 0.0))
        return found

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """An ordinary sequence-classification folder, plus the fingerprint of template and tokenizer."""
        export(self.learner.model, folder, self.encoder.tokenizer, learner=self.learner)
        learned = {name: value.tolist() for name, value in self.learner.model.learned.items()}
        told = {"fingerprint": self.encoder.fingerprint(), "readout": asdict(self.readout), "learned": learned}
        if self.pooling is not None:
            told["pooling"] = asdict(self.pooling)
        text = json.dumps({**told, **(facts or {})}, indent=1)
        (folder / FINGERPRINT).write_text(text + "\n")


def batches(encoded: Sequence[Encoded], pad: int) -> Iterator[tuple[list[int], TokenBatch]]:
    """Conversations with those of one prompt side by side, and the places that each batch's rows have in `encoded`."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(encoded):
        groups.setdefault(item.trunk if item.shared else (-1, index), []).append(index)
    members = list(groups.values())
    for first in range(0, len(members), GROUPS_AT_ONCE):
        part = members[first : first + GROUPS_AT_ONCE]
        yield [i for group in part for i in group], collate([[encoded[i] for i in group] for group in part], pad)


def read_facts(folder: Path) -> dict[str, Any]:
    """What was saved beside the weights; nothing for a classifier that was trained elsewhere."""
    if not (folder / FINGERPRINT).exists():
        return {}
    try:
        found = json.loads((folder / FINGERPRINT).read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{folder / FINGERPRINT} is not whole: train or save the model again")
    return found


def readout_of(told: Mapping[str, Any]) -> Readout:
    """From JSON, where tuples are lists."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
    return Readout(**fields)


def check_fingerprint(folder: Path, encoder: Encoder) -> None:
    """Template, BOS/EOS/pad handling and tokenizer must be those of training; a folder without record passes."""
    trained = read_facts(folder).get("fingerprint", {})
    here = encoder.fingerprint()
    if changed := [name for name in trained if trained[name] != here.get(name)]:
        raise InputError(
            f"{folder}: the {', '.join(changed)} of its tokenizer changed since training, so its rewards would mean "
            f"something else; restore the tokenizer files that were saved with it"
        )


def as_pair(conversation: Conversation) -> tuple[Prompt, Response]:
    """Prompt and response of a conversation; message lists are split after the last user turn."""
    if isinstance(conversation, tuple) and len(conversation) == 2 and isinstance(conversation[0], Prompt):
        return conversation  # pyright: ignore[reportReturnType]
    messages = tuple(Message.from_json(item) for item in conversation)
    if not messages or messages[-1].role != "assistant":
        raise InputError("a conversation to score must end with an assistant message")
    place = max((i + 1 for i, message in enumerate(messages) if message.role == "user"), default=0)
    return Prompt(messages=messages[:place]), messages[place:]
