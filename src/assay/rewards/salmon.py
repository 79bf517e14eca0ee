"""Preferences that follow from principles: a judge's opinion of each principle in, labelled comparisons out.

Source: Sun et al. 2024, arXiv:2310.05910 (SALMON), sec. 3.2, and its published code for the constants. Left out is
the rule that an answer in the wrong language loses: it needs something that tells languages apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from assay.feedback.relabel import numbered, relabelled
from assay.records import Comparison, Prompt, Response, text_of
from assay.rewards.principles import Principle, Told, instructed
from assay.settings import InputError, Settings

OF_FIRST = ("clean", "imported_preference")  # what `meta` says of the first response, as `preference` does
ROUNDING = 1e-9  # the spread, beside their size, that equal opinions have by rounding


@dataclass(frozen=True, slots=True)
class Rule:
    """A sign of a bad answer that needs no judge: the one of two that shows it loses, with this probability."""

    name: str
    shows: Callable[[Prompt, Response], bool]
    probability: float = 1.0


def disclaims(_: Prompt, response: Response) -> bool:
    """Whether an answer calls itself a language model."""
    return "as an ai language model" in text_of(response).casefold()


DISCLAIMER = Rule("disclaimer", disclaims, probability=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation(Settings):
    """How opinions become labels. The constants are the published ones."""

    passes: int = 4  # labels drawn for each pair
    geometric: float = 0.2  # the number of principles of a label: geometric, cut off at `most`
    most: int = 8
    negate: float = 0.5  # the probability that a principle is turned into its negation
    flip: float = 0.1  # of a wrong label, planted
    rule_flip: float = 0.25  # the same where a rule decided
    scale: Literal["var", "std"] = "var"  # what a principle's opinions are divided by (the code: the variance)
    aggregate: Literal["dominant", "sum"] = "dominant"

    def __post_init__(self) -> None:
        for name in ("passes", "most"):
            if getattr(self, name) < 1:
                raise InputError(f"aggregation.{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.geometric <= 1:
            raise InputError(f"aggregation.geometric must lie in (0, 1]; got {self.geometric}")
        for name in ("negate", "flip", "rule_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"aggregation.{name} is a probability in [0, 1]; got {getattr(self, name)}")


def debiased(judgements: Tensor) -> Tensor:
    """[N, K] the mean of the two orders' opinions [N, K, 2]; 0 where the orders disagree about the winner."""
    agree = torch.sign(judgements[..., 0]) == torch.sign(judgements[..., 1])
    return torch.where(agree, judgements.mean(-1), 0.0)


def scaled(opinions: Tensor, scale: Literal["var", "std"]) -> Tensor:
    """Opinions [N, K], each principle's divided by the variance (or deviation) of what it says over all pairs.

    Those of a principle that says the same of every pair stay as they are: nothing tells their scale.
    """
    spread = opinions.std(0, correction=0)
    alike = spread <= ROUNDING * opinions.abs().amax(0)
    return opinions / torch.where(alike, 1.0, spread**2 if scale == "var" else spread)


def truncated_geometric(p: float, most: int, rng: Random) -> int:
    """k in 1..most with probability proportional to (1 - p)^(k - 1)."""
    return rng.choices(range(1, most + 1), [(1 - p) ** k for k in range(most)])[0]


def build_preferences(
    pairs: Sequence[Comparison],
    judgements: Tensor,
    principles: Sequence[Principle],
    settings: Aggregation | None = None,
    *,
    rules: Sequence[Rule] = (),
    rng: Random,
) -> list[Comparison]:
    """Comparisons under principles, labelled by the judge: `judgements` [N, K, 2] for the pairs' two responses.

    judgements[n, k] are log-odds that the first response follows principle k better, with the responses shown in this
    order and, sign turned back, in the other. A label is drawn from the sign of the strongest opinion among the
    principles drawn; pairs about which there is none are dropped. `meta` of each comparison tells its principles,
    their signs and `clean`, what `preference` would be without a planted error. A pair that is labelled
    again gets an id of its own.
    """
    settings = settings or Aggregation()
    opinions = scaled(debiased(judgements.double()), settings.scale)
    found: list[Comparison] = []
    for _ in range(settings.passes):
        for pair, row in zip(pairs, opinions, strict=True):
            made = _label(pair, row, principles, settings, rules, rng)
            if made is not None:
                found.append(made)
    return numbered(found)


def _label(
    pair: Comparison,
    opinions: Tensor,
    principles: Sequence[Principle],
    settings: Aggregation,
    rules: Sequence[Rule],
    rng: Random,
) -> Comparison | None:
    num = truncated_geometric(settings.geometric, min(settings.most, len(principles)), rng)
    drawn = rng.sample(range(len(principles)), num)
    signs = [-1 if rng.random() < settings.negate else 1 for _ in drawn]
    told: list[Told] = [(principles[k], sign) for k, sign in zip(drawn, signs, strict=True)]
    scores = [float(opinions[k]) * sign for k, sign in zip(drawn, signs, strict=True)]
    verdict = max(scores, key=abs) if settings.aggregate == "dominant" else sum(scores)
    ruled = _ruling(pair, rules, rng)
    if not ruled and verdict == 0:
        return None
    first = (ruled or verdict) > 0
    wrong = rng.random() < (settings.rule_flip if ruled else settings.flip)
    meta: dict[str, Any] = {
        "principles": [principle.name for principle, _ in told],
        "signs": signs,
        "clean": float(first),
        "by_rule": bool(ruled),
    }
    kept = relabelled(
        pair,
        float(first != wrong),
        meta=meta,
        responses=(instructed(pair.responses[0], told), instructed(pair.responses[1], told)),
        id="",
        objective="principles",
    )
    return _turned(kept) if rng.random() < 0.5 else kept


def _turned(made: Comparison) -> Comparison:
    """The responses in the other order, and what `meta` says of the first."""
    of_first = {name: 1 - made.meta[name] for name in OF_FIRST if name in made.meta}
    return replace(made.swapped(), id="", meta={**made.meta, **of_first})


def _ruling(pair: Comparison, rules: Sequence[Rule], rng: Random) -> int:
    """1 or -1 for the response that wins by a rule; 0 where none decides."""
    for rule in rules:
        shown = [rule.shows(pair.prompt, response) for response in pair.responses]
        if shown[0] != shown[1] and rng.random() < rule.probability:
            return -1 if shown[0] else 1
    return 0
