"""What comparisons leave open: the answers to a prompt that no chain of judgements ties together.

Judgements of one prompt under one objective are a graph over its distinct answers. Where it falls into unconnected
parts, nothing in the data says how the rewards of one part stand to those of another: a likelihood of comparisons is
flat along that shift. Records without a prompt are left out, each being a context of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from assay.records import Comparison, Judgement, Ranking, stable_id, text_of

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
    return [gap for gap in _gaps(several(judgements)) if len(gap.parts) > 1]


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


def _gaps(groups: Sequence[Sequence[Compared]]) -> list[Gap]:
    """The connected parts of each group's answers; one graph holds them all."""
    texts: dict[tuple[int, str], str] = {}
    edges: list[tuple[tuple[int, str], tuple[int, str]]] = []
    for number, group in enumerate(groups):
        for judgement in group:
            answers = [(number, stable_id(response)) for response in judgement.responses]
            texts.update(zip(answers, map(text_of, judgement.responses), strict=True))
            edges += [(answers[first], answers[second]) for first, second in _compared(judgement)]
    place = {answer: index for index, answer in enumerate(texts)}
    ends = np.array([(place[first], place[second]) for first, second in edges], dtype=np.int32).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), ends.T), shape=(len(place), len(place)))
    _, parts = connected_components(graph, directed=False)
    split: list[dict[int, list[str]]] = [{} for _ in groups]
    for (number, _), text, part in zip(texts, texts.values(), parts.tolist(), strict=True):
        split[number].setdefault(part, []).append(text)
    return [
        Gap(group[0].prompt.id, group[0].objective, tuple(map(tuple, parts.values())))
        for group, parts in zip(groups, split, strict=True)
    ]


def _compared(judgement: Compared) -> tuple[tuple[int, int], ...]:
    """Places of the responses that it compares, two by two."""
    return judgement.untied() if isinstance(judgement, Ranking) else ((0, 1),)
