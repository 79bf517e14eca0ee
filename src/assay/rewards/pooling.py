"""Rewards at tokens, and how they become the reward of a response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.settings import Settings
from assay.shapes import RowLevels, TokenBool, TokenLevels
from assay.tokens.chat import Encoded, Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling(Settings):
    """What a head's numbers at tokens mean, and which of them count.

    link: a number is the reward ("identity"), the logit of being right ("right": the reward is its probability), or
    the logit of an error ("wrong": the reward is minus its probability). pool: their "sum", "mean", least ("min") or
    "last" over the response's tokens, or over the ends of its steps where a `separator` ends each.
    """

    link: Literal["identity", "right", "wrong"] = "identity"
    pool: Literal["sum", "mean", "min", "last"] = "sum"
    separator: str = ""

    def rewards(self, numbers: TokenLevels) -> TokenLevels:
        """The reward of each token by each number."""
        if self.link == "identity":
            return numbers
        return torch.sigmoid(numbers) if self.link == "right" else -torch.sigmoid(numbers)

    def pooled(self, numbers: TokenLevels, counted: TokenBool) -> RowLevels:
        """The reward of each response, [B, L]; 0 where no token counts."""
        rewards, where = self.rewards(numbers), counted[..., None]
        if self.pool == "min":
            least = rewards.masked_fill(~where, torch.inf).amin(1)
            return torch.where(counted.any(1)[:, None], least, 0.0)
        if self.pool == "last":
            last = (counted * torch.arange(1, counted.shape[1] + 1)).amax(1)
            found = rewards.gather(1, (last - 1).clamp(min=0)[:, None, None].expand(-1, 1, rewards.shape[-1])).squeeze(
                1
            )
            return torch.where((last > 0)[:, None], found, 0.0)
        total = torch.where(where, rewards, 0.0).sum(1)
        return total if self.pool == "sum" else total / counted.sum(1, keepdim=True).clamp(min=1)

    def counted(self, encoded: Sequence[Encoded], encoder: Encoder, width: int) -> TokenBool:
        """[B, width] the tokens whose rewards count."""
        found = torch.zeros(len(encoded), width, dtype=torch.bool)
        for row, item in enumerate(encoded):
            first = 0 if item.trunk else 1  # as in training: a token that follows nothing does not count
            places: Sequence[int] = [i for i, written in enumerate(item.mask) if written and i >= first]
            found[row, step_ends(item, encoder, self.separator) if self.separator else places] = True
        return found


def step_ends(encoded: Encoded, encoder: Encoder, separator: str) -> list[int]:
    """Places of the tokens that end a step: the last of each run that holds the separator, and the answer's last."""
    written = [place for place, is_written in enumerate(encoded.mask) if is_written]
    holds = [separator in encoder.tokenizer.decode([encoded.ids[place]]) for place in written]
    ends = [p for i, p in enumerate(written[:-1]) if holds[i] and not holds[i + 1]]
    return [*ends, *written[-1:]]


def span_tokens(places: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int, int]], num: int) -> Tensor:
    """[T, num] 1 where a token's characters overlap a span (start, end, kind), else 0."""
    found = torch.zeros(len(places), num)
    for token, (first, last) in enumerate(places):
        for start, end, kind in spans:
            if first < end and last > start:
                found[token, kind] = 1.0
    return found
