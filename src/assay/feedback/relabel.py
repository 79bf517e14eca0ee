"""Comparisons that somebody else labels: what must not stay of the old label, and ids where one pair comes again."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from assay.records import Comparison, stable_id

OF_LABEL = ("margin", "shown_first")
"""What `meta` says of a label and of who gave it: how clear it was, and where the preferred response was shown."""


def relabelled(
    comparison: Comparison, preference: float, *, meta: Mapping[str, Any] | None = None, **fields: Any
) -> Comparison:
    """The same pair with another's label: `meta` loses what spoke of the old one and gains this; `fields` replace."""
    kept = {name: value for name, value in comparison.meta.items() if name not in OF_LABEL}
    return replace(comparison, preference=preference, meta={**kept, **(meta or {})}, **fields)


def numbered(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The same, each under an id of its own: a second one of an id, and any further, gets one of it and a number."""
    times: Counter[str] = Counter()
    found: list[Comparison] = []
    for comparison in comparisons:
        again = times[comparison.id]
        times[comparison.id] += 1
        found.append(replace(comparison, id=stable_id(comparison.id, again)) if again else comparison)
    return found
