"""A likelihood for people who want different things: hidden groups of annotators, each with a reward of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from assay.batch import Metrics, ModelOutput, TokenBatch
from assay.losses import preference as losses
from assay.records import Judged
from assay.rewards.likelihoods.annotators import names_of, nobody_to_tell_apart, speakers
from assay.rewards.likelihoods.base import Likelihood, judged, preferences
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.shapes import PairFloat, RowFloat, RowInt, RowLevels
from assay.tokens.chat import Encoded, Encoder

SHARPNESS = 3.0  # of the random memberships that EM starts from; near-even ones would start at a saddle point


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatorGroups(Likelihood):
    """An annotator belongs to one of K groups, nobody knows which; in a group Bradley-Terry holds on its own reward.

    Fitted by EM: within an epoch memberships are fixed and weigh the groups' losses, between epochs they become their
    posterior. So it takes several epochs; which group is which is arbitrary. The reward is the groups' mean unless
    weights are given.

    Source: Dempster, Laird & Rubin 1977; rewards of groups of people: Chakraborty et al. 2024, arXiv:2402.08925.
    """

    name: Literal["annotator_groups"] = "annotator_groups"
    groups: int = 2
    centring_coef: float = 0.01  # pulls each group's mean reward of a pair to 0, which comparisons leave open
    names: tuple[str, ...] = ()  # who is told apart; filled from the feedback
    columns: ClassVar[Mapping[str, Any]] = {"annotator": RowInt}
    reads: ClassVar[tuple[str, ...]] = ("outputs",)
    learns_between: ClassVar[bool] = True

    @property
    def num_outputs(self) -> int:
        """A reward for each group."""
        return self.groups

    @property
    def readout(self) -> Readout:
        """The groups, weighted together."""
        return Readout(kind="attributes", names=tuple(f"group {place + 1}" for place in range(self.groups)))

    @property
    def learned(self) -> dict[str, Tensor]:
        """Memberships [A, K], sharp and random at the start, and the groups' shares [K]."""
        generator = torch.Generator().manual_seed(0)
        start = SHARPNESS * torch.randn(len(self.names), self.groups, generator=generator)
        return {"membership": start.softmax(-1), "shares": torch.full((self.groups,), 1 / self.groups)}

    def refuse(self, judgements: Sequence[Judged]) -> str:
        """People who cannot be told apart."""
        if self.groups < 2:
            return f"--likelihood.groups {self.groups}: one group is --likelihood bradley_terry"
        return nobody_to_tell_apart(judgements)

    def knowing(self, judgements: Sequence[Judged]) -> Self:
        """The annotators in the order they first appear."""
        if self.names:
            raise InputError("likelihood.names is filled from the feedback: leave it out")
        return replace(self, names=names_of(judgements))

    def fill(
        self, judgements: Sequence[Judged], encoded: Sequence[Sequence[Encoded]], encoder: Encoder, mask: Tensor
    ) -> dict[str, Tensor]:
        """Who speaks, [B]."""
        return {"annotator": speakers(self.names, judgements, encoded)}

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """The M-step: each group's Bradley-Terry, as much as the one who judged belongs to it."""
        chosen, rejected = out.outputs[0::2], out.outputs[1::2]
        belongs = out.parameters["membership"].detach().to(chosen.dtype)[batch.annotator[0::2]]
        nll = losses.by_group(chosen, rejected, belongs, preference=preferences(batch, chosen[:, 0]))
        own = [(belongs * side).sum(-1) for side in (chosen, rejected)]  # the reward of whoever judged
        metrics = {"nll": nll, **judged(*own), "sureness": belongs.max(-1).values}
        levels = [losses.centring(*two) for two in zip(chosen.unbind(-1), rejected.unbind(-1), strict=True)]
        return nll + self.centring_coef * torch.stack(levels).mean(0), metrics

    def between_epochs(self, outputs: RowLevels, batch: TokenBatch, learned: Mapping[str, Tensor]) -> None:
        """The E-step: memberships by all that each one said, then the shares as their mean."""
        preference = preferences(batch, outputs[0::2, 0])
        sides = outputs[0::2].double(), outputs[1::2].double()
        found = losses.group_posterior(
            *sides,
            batch.annotator[0::2],
            learned["shares"].cpu().double(),
            len(self.names),
            preference=preference.double(),
        )
        learned["membership"].copy_(found)
        learned["shares"].copy_(found.mean(0))

    def told(self, learned: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """How likely each annotator belongs to each group."""
        rows = learned["membership"].tolist()
        return {n: dict(zip(self.readout.names, row, strict=True)) for n, row in zip(self.names, rows, strict=True)}

    def log_odds(
        self,
        outputs: RowLevels,
        rewards: RowFloat,
        judgements: Sequence[Judged],
        told: Mapping[str, Mapping[str, float]],
    ) -> PairFloat:
        """By the groups that the annotator may belong to; one not heard before belongs where the others do."""
        rows = [list(row.values()) for row in told.values()]
        usual = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        known = [list(told[j.annotator].values()) if j.annotator in told else usual for j in judgements]
        belongs = torch.tensor(known, dtype=outputs.dtype)
        chance = (belongs * torch.sigmoid(outputs[0::2] - outputs[1::2])).sum(-1)
        return torch.logit(chance, eps=1e-7)
