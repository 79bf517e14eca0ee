"""Likelihoods of an order of several responses to one prompt."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from assay.algorithms.base import Data
from assay.batch import Metrics, ModelOutput, Reduction, TokenBatch
from assay.losses import ranking as losses
from assay.records import Judged, Ranking
from assay.rewards.likelihoods.base import Likelihood
from assay.shapes import GroupFloat, RankingBool, RankingFloat, RankingInt, RowInt


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked(Likelihood):
    """Base of the likelihoods below: a ranking's rows side by side, best first; `rank` [B], equal for ties."""

    data: ClassVar[Data] = "rankings"
    columns: ClassVar[Mapping[str, Any]] = {"rank": RowInt}
    reduction: ClassVar[Reduction] = "ranking"
    centring_coef: float = 0.01  # pulls the mean reward of a ranking to 0, which an order leaves open

    @abstractmethod
    def nll(self, rewards: RankingFloat, ranks: RankingInt, present: RankingBool) -> GroupFloat:
        """Negative log-likelihood of each ranking."""

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[GroupFloat, Metrics]:
        """The likelihood, and the square of a ranking's mean reward, which an order leaves open."""
        rewards, present = losses.by_ranking(out.rewards, batch.ranking)
        ranks = losses.by_ranking(batch.rank.to(rewards.dtype), batch.ranking)[0].long()
        nll = self.nll(rewards, ranks, present)
        mean = rewards.sum(-1) / present.sum(-1)
        metrics = {"nll": nll, "accuracy": agreement(rewards, ranks, present), "mean_reward": mean}
        return nll + self.centring_coef * (2 * mean) ** 2, metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class PlackettLuce(Ranked):
    """Each place goes to one of those left, by softmax of their rewards. Plackett 1975; Luce 1959."""

    name: Literal["plackett_luce"] = "plackett_luce"

    def refuse(self, judgements: Sequence[Judged]) -> str:
        """Ties."""
        tied = [r for r in judgements if isinstance(r, Ranking) and r.tied]
        if not tied:
            return ""
        return (
            f"{len(tied)} of {len(judgements)} rankings have ties (the first: {tied[0].id}), and Plackett-Luce needs "
            f"one order of all: use --likelihood kwise_bradley_terry"
        )

    def nll(self, rewards: RankingFloat, ranks: RankingInt, present: RankingBool) -> GroupFloat:
        """Of the whole order. Tied responses stand in the order they came in."""
        return losses.plackett_luce(rewards, present)


@dataclass(frozen=True, slots=True, kw_only=True)
class KwiseBradleyTerry(Ranked):
    """Bradley-Terry on all pairs of a ranking, their mean one element. Ouyang et al. 2022, arXiv:2203.02155, eq. 1."""

    name: Literal["kwise_bradley_terry"] = "kwise_bradley_terry"

    def nll(self, rewards: RankingFloat, ranks: RankingInt, present: RankingBool) -> GroupFloat:
        """Mean over the pairs that are not tied."""
        return losses.kwise_bradley_terry(rewards, ranks, present)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfK(Ranked):
    """Only which response is the best is known: softmax of the rewards."""

    name: Literal["best_of_k"] = "best_of_k"

    def refuse(self, judgements: Sequence[Judged]) -> str:
        """Ties of the first place."""
        tied = [r for r in judgements if isinstance(r, Ranking) and r.ranks[1] == r.ranks[0]]
        if not tied:
            return ""
        return (
            f"{len(tied)} of {len(judgements)} rankings have several best responses (the first: {tied[0].id}), and "
            f"best_of_k needs one: use --likelihood kwise_bradley_terry"
        )

    def nll(self, rewards: RankingFloat, ranks: RankingInt, present: RankingBool) -> GroupFloat:
        """Of the first place."""
        return losses.best_of_k(rewards, present)


def agreement(rewards: RankingFloat, ranks: RankingInt, present: RankingBool) -> GroupFloat:
    """Share of a ranking's untied pairs that the rewards order the same way; equal rewards count half."""
    before = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    difference = rewards[:, :, None] - rewards[:, None, :]
    right = torch.where(difference > 0, 1.0, torch.where(difference == 0, 0.5, 0.0))
    return torch.where(before, right, 0.0).sum((1, 2)) / before.sum((1, 2)).clamp(min=1)
