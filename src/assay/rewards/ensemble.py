"""Several reward models as one, behind the one interface."""

from collections.abc import Sequence

import torch
from torch import Tensor

from assay.rewards.model import Reward
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.tokens.chat import Encoded


class Ensemble(Reward):
    """Several reward models, each with one opinion of the reward; uncertainty is their standard deviation.

    Members that are full models take M times the memory and the time of one; see `rewards.adapters` for less.

    Source: Coste et al. 2024, arXiv:2310.02743, sec. 3.
    """

    def __init__(self, members: Sequence[Reward], readout: Readout) -> None:
        """Raises InputError for a single member, which has no spread, and where members do not read the same text."""
        if len(members) < 2:
            raise InputError(f"an ensemble needs at least two members; got {len(members)}")
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


def check_same_text(one: Reward, other: Reward) -> None:
    """Raises InputError that names both models and what of their tokenizers or templates differs."""
    mine, theirs = one.encoder.fingerprint(), other.encoder.fingerprint()
    if differing := [name for name in mine if mine[name] != theirs[name]]:
        raise InputError(
            f"{one.name} and {other.name} do not read the same text: the {', '.join(differing)} of their tokenizers "
            f"differ; use models of one tokenizer and template"
        )
