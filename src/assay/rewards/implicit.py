"""A policy read as a reward model: what it says more often than its reference does is what it was taught to value.

r(x, y) = beta log pi(y | x) / pi_ref(y | x), up to a number that depends on the prompt alone, beta log Z(x): rewards
compare answers to one prompt, never prompts. Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 5.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.engine.learner import Learner
from assay.engine.load import DType
from assay.engine.model import context
from assay.losses.policy import log_ratio
from assay.rewards.language import load_language_model
from assay.rewards.model import Conversation, Reward, batches
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.shapes import RowFloat
from assay.tokens.chat import Encoded, Encoder

PREFIX = "implicit:"
BETA = 0.1  # DPO's usual one


def implicit_reward(policy: Learner, reference: Learner, batch: TokenBatch, beta: float) -> RowFloat:
    """[B] beta log pi/pi_ref of whole responses, over the tokens that the assistant wrote. Rafailov et al., eq. 5."""
    ours, theirs = (learner.forward(batch, ("logprobs",)).logprobs for learner in (policy, reference))
    return beta * log_ratio(ours, theirs, batch.mask)


@dataclass(frozen=True, slots=True)
class ImplicitSource:
    """The models of an implicit reward, by name, folder or hub id, and its scale."""

    policy: str
    reference: str
    beta: float = BETA

    @classmethod
    def parse(cls, spec: str) -> Self:
        """From "implicit:POLICY", "implicit:POLICY:REFERENCE" or "implicit:0.5*POLICY:REFERENCE".

        Without a reference: what the policy of a run directory started from.
        """
        weight, star, names = spec.removeprefix(PREFIX).rpartition("*")
        policy, _, reference = names.partition(":")
        try:
            beta = float(weight) if star else BETA
        except ValueError:
            raise InputError(f"{spec}: {weight!r} is no number; write implicit:beta*POLICY:REFERENCE") from None
        if not policy or not 0 < beta < float("inf"):
            raise InputError(f"{spec}: write implicit:beta*POLICY:REFERENCE, beta a positive number")
        return cls(policy, reference or _started_from(policy), beta)


def _started_from(policy: str) -> str:
    """The base that the run of this policy folder notes beside it."""
    notes = Path(policy).absolute().parent / "provenance.json"
    try:
        known = json.loads(notes.read_text()) if Path(policy).name == "policy" and notes.exists() else {}
    except ValueError:
        known = None  # cut off: as if it said nothing
    if isinstance(known, dict) and (base := known.get("policy", {}).get("base")):
        return base
    raise InputError(
        f"{policy}: no run directory around it says what it started from: name its reference, "
        f"{PREFIX}{policy}:REFERENCE"
    )


class ImplicitReward(Reward):
    """A policy and its reference in a reward model's place; conversations are rendered as for the policy."""

    def __init__(self, policy: Learner, reference: Learner, encoder: Encoder, *, name: str, beta: float) -> None:
        self.policy, self.reference, self.encoder, self.beta = policy, reference, encoder, beta
        self.name, self.readout = name, Readout()

    @classmethod
    def from_pretrained(cls, name: str, *, dtype: DType = "auto", token_budget: int = 8192) -> Self:
        """From a spec as `ImplicitSource.parse` takes it."""
        source = ImplicitSource.parse(name)
        policy, encoder = load_language_model(source.policy, dtype=dtype, token_budget=token_budget)
        reference, other = load_language_model(source.reference, dtype=dtype, token_budget=token_budget)
        if changed := encoder.other_ids(other):
            raise InputError(
                f"{source.reference} is no reference of {source.policy}: the {', '.join(changed)} of their tokenizers "
                f"differ, so the same ids mean different words"
            )
        return cls(policy, reference, encoder, name=name, beta=source.beta)

    @property
    def context(self) -> int:
        """Tokens a conversation may have: both models must read it."""
        return min(context(learner.model.config) for learner in (self.policy, self.reference))

    def outputs_encoded(self, encoded: Sequence[Encoded]) -> Tensor:
        """[B, 1] the implicit rewards."""
        outputs = torch.zeros(len(encoded), 1)
        for rows, batch in batches(encoded, self.encoder.tokenizer.pad_token_id):
            outputs[rows, 0] = implicit_reward(self.policy, self.reference, batch, self.beta)
        return outputs

    def token_rewards(self, conversations: Iterable[Conversation]) -> list[Tensor]:
        """[T] beta log pi/pi_ref of each token that the assistant wrote, 0 elsewhere; they sum to the reward.

        Source: Rafailov et al. 2024, arXiv:2404.12358, sec. 4.2 (a language model as a Q-function).
        """
        encoded = self.encode_all(conversations)
        found: dict[int, Tensor] = {}
        for rows, batch in batches(encoded, self.encoder.tokenizer.pad_token_id):
            ours, theirs = (one.forward(batch, ("logprobs",)).logprobs for one in (self.policy, self.reference))
            paid = self.beta * torch.where(batch.mask, ours - theirs, 0.0)
            found |= {row: paid[i, : len(encoded[row].ids)] for i, row in enumerate(rows)}
        return [found[row] for row in range(len(encoded))]
