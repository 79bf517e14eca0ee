"""What comparisons leave open: the answers to a prompt that no chain of judgements ties together.

Judgements of one prompt under one objective are a graph over its distinct answers. Where it falls into unconnected
parts, nothing in the data says how the rewards of one part stand to those of another: a likelihood of comparisons is
flat along that shift. Records without a prompt are left out, each being a context of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from assay.records import Comparison, Ranking, Rating, SpanLabels, stable_id, text_of

Judgement = Comparison | Ranking | Rating | SpanLabels
Compared = Comparison | Ranking
SHOWN = 3  # parts whose sizes are told one by one


@dataclass(frozen=True, slots=True)
class Gap:
    """The answers to one prompt, as texts in the order they first appear, in the parts that they fall into."""

    prompt: str  # its id
    objective: str
    parts: tuple[tuple[str, ...], ...]


def unconnected(judgements: Iterable[Judgement]) -> list[Gap]:
    """Prompts (per objective) with several judgements whose answers fall into parts that no judgement connects.

    A tie connects; tied places of a ranking do not. Ratings say how every answer stands, so they have no gaps.

    Source: Ford 1957, "Solution of a ranking problem from binary comparisons"; Hunter 2004, "MM algorithms for
    generalized Bradley-Terry models".
    """
    return [gap for gap in _gaps(several(judgements), "weak") if len(gap.parts) > 1]


def unbounded(judgements: Iterable[Judgement]) -> list[Gap]:
    """Prompts (per objective) whose maximum-likelihood rewards are infinite without a prior.

    Of any two parts that were compared with each other, one won every time. A preference between 0 and 1 is a win of
    both. For worlds with a reward per answer: real feedback, most pairs judged once, is nearly always so.

    Source: Ford 1957, "Solution of a ranking problem from binary comparisons": the maximum is finite and unique exactly
    if in every split in two, some answer of each side is preferred to one of the other.
    """
    groups = _groups(judgements)
    both = zip(_gaps(groups, "strong"), _gaps(groups, "weak"), strict=True)
    return [strong for strong, weak in both if len(strong.parts) > len(weak.parts)]


def several(judgements: Iterable[Judgement]) -> list[list[Compared]]:
    """The judgements of each prompt and objective that has more than one."""
    return [group for group in _groups(judgements) if len(group) > 1]


def describe_gaps(judgements: Sequence[Judgement], kind: str) -> str:
    """One line for people about `unconnected`; '' without gaps. `kind` is what the judgements are called."""
    gaps = unconnected(judgements)
    if not gaps:
        return ""
    prompts = len({group[0].prompt.id for group in several(judgements)})
    return (
        f"{len({gap.prompt for gap in gaps})} of {prompts} prompts with several {kind} fall into unconnected parts "
        f"(the first: {gaps[0].prompt}, {_sizes(gaps[0])}): the data says nothing of how these compare"
    )


def _sizes(gap: Gap) -> str:
    sizes = sorted(map(len, gap.parts), reverse=True)
    if len(sizes) > SHOWN:
        return f"{len(sizes)} parts of {sizes[-1]} to {sizes[0]} answers"
    return f"parts of {', '.join(map(str, sizes[:-1]))} and {sizes[-1]} answers"


def _groups(judgements: Iterable[Judgement]) -> list[list[Compared]]:
    found: dict[tuple[str, str], list[Compared]] = {}
    for judgement in judgements:
        if isinstance(judgement, Comparison | Ranking) and judgement.prompt.messages:
            found.setdefault((judgement.prompt.id, judgement.objective), []).append(judgement)
    return list(found.values())


def _gaps(groups: Sequence[Sequence[Compared]], connection: Literal["weak", "strong"]) -> list[Gap]:
    """The connected parts of each group's graph, whose edges go from who was preferred; one graph holds them all."""
    texts: dict[tuple[int, str], str] = {}
    wins: list[tuple[tuple[int, str], tuple[int, str]]] = []
    for number, group in enumerate(groups):
        for judgement in group:
            answers = [(number, stable_id(response)) for response in judgement.responses]
            texts.update(zip(answers, map(text_of, judgement.responses), strict=True))
            wins += [(answers[better], answers[worse]) for better, worse in _wins(judgement)]
    place = {answer: index for index, answer in enumerate(texts)}
    edges = np.array([(place[better], place[worse]) for better, worse in wins], dtype=np.int32).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(place), len(place)))
    _, parts = connected_components(graph, connection=connection)
    split: list[dict[int, list[str]]] = [{} for _ in groups]
    for (number, _), text, part in zip(texts, texts.values(), parts.tolist(), strict=True):
        split[number].setdefault(part, []).append(text)
    return [
        Gap(group[0].prompt.id, group[0].objective, tuple(map(tuple, parts.values())))
        for group, parts in zip(groups, split, strict=True)
    ]


def _wins(judgement: Compared) -> tuple[tuple[int, int], ...]:
    """Places of its responses, the one that won first; both ways where the preference is no certainty."""
    if isinstance(judgement, Ranking):
        return judgement.untied()
    first, second = ((0, 1),) * (judgement.preference > 0), ((1, 0),) * (judgement.preference < 1)
    return first + second
