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

    def outputs(self, conversations: Iterable[Conversation]) -> Tensor:
        """[B, L] the numbers, which `readout` turns into rewards."""
        encoded = [self.encode(conversation) for conversation in conversations]
        for index, item in enumerate(encoded):
            if item.num_tokens > self.context:
                raise InputError(
                    f"conversation {index} has {item.num_tokens} tokens, the reward model's context {self.context}: "
                    f"leave it out or shorten it"
                )
        return self.outputs_encoded(encoded)

    def score_encoded(self, encoded: Sequence[Encoded]) -> list[float]:
        """One reward per encoded conversation, in order."""
        return self.readout.reward(self.outputs_encoded(encoded)).tolist()


class RewardModel(Reward):
    """A sequence classifier, its tokenizer, how conversations are rendered for it, and how its outputs are read."""

    def __init__(self, learner: Learner, encoder: Encoder, *, name: str, readout: Readout | None = None) -> None:
        self.learner, self.encoder, self.name = learner, encoder, name
        self.readout = readout or Readout()

    @classmethod
    def from_pretrained(cls, name: str, *, dtype: DType = "auto", token_budget: int = 8192) -> Self:
        """A folder that `save` wrote, or any classifier with one output that transformers loads.

        Raises InputError where the head is missing, or the tokenizer or template is not the one it was trained with.
        """
        source = resolve_model(name)
        encoder = Encoder(load_tokenizer(source))
        check_fingerprint(Path(source.path), encoder)
        readout = read_facts(Path(source.path)).get("readout", {})
        model = load_reward(source, dtype=dtype, num_outputs=None if readout else 1)
        return cls(Learner(model, token_budget=token_budget), encoder, name=name, readout=_readout(readout))

    @property
    def context(self) -> int:
        """Tokens a conversation may have."""
        return context(self.learner.model.config)

    def outputs_encoded(self, encoded: Sequence[Encoded]) -> Tensor:
        """[B, L] the head's numbers for encoded conversations."""
        outputs = torch.zeros(len(encoded), self.learner.model.head("reward").out_features)
        for rows, batch in batches(encoded, self.encoder.tokenizer.pad_token_id):
            outputs[rows] = self.learner.forward(batch, ("outputs",)).outputs
        return outputs

    def save(self, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
        """An ordinary sequence-classification folder, plus the fingerprint of template and tokenizer."""
        export(self.learner.model, folder, self.encoder.tokenizer, learner=self.learner)
        learned = {name: value.tolist() for name, value in self.learner.model.learned.items()}
        told = {"fingerprint": self.encoder.fingerprint(), "readout": asdict(self.readout), "learned": learned}
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
    return json.loads((folder / FINGERPRINT).read_text()) if (folder / FINGERPRINT).exists() else {}


def _readout(told: Mapping[str, Any]) -> Readout:
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
    """Prompt and response of a conversation; message lists are split before the last run of assistant turns."""
    if isinstance(conversation, tuple) and len(conversation) == 2 and isinstance(conversation[0], Prompt):
        return conversation  # pyright: ignore[reportReturnType]
    messages = tuple(Message.from_json(item) for item in conversation)
    if not messages or messages[-1].role != "assistant":
        raise InputError("a conversation to score must end with an assistant message")
    place = max((i + 1 for i, message in enumerate(messages) if message.role == "user"), default=0)
    return Prompt(messages=messages[:place]), messages[place:]
