"""Principles that a reward model can be told: what they say, how they are drawn, and how a conversation carries them.

Source: Sun et al. 2024, arXiv:2310.05910 (SALMON), secs. 3.2 and 3.3, and its published code for the constants.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from assay.records import Message, Response
from assay.settings import InputError, Settings, nearest

NOT = "not:"
HEADING = "Judge the answer above by these rules:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principle(Settings):
    """What a good answer does, and its opposite; `weight` says how often it is drawn, `tags` what it is about."""

    name: str
    text: str
    negation: str
    weight: float = 1.0
    tags: tuple[str, ...] = ()

    def say(self, sign: int = 1) -> str:
        """The principle, or for a sign of -1 its negation."""
        return self.text if sign > 0 else self.negation


Told = tuple[Principle, int]
"""A principle and its sign: 1 as it stands, -1 negated."""


def instructed(response: Response, principles: Sequence[Told]) -> Response:
    """The response, followed by the rules it is to be judged by. InputError for plain text: no message follows it."""
    if any(message.role == "text" for message in response):
        raise InputError("principles are a message after the answer, and this answer is plain text: use messages")
    rules = "\n".join(f"- {principle.say(sign)}" for principle, sign in principles)
    return (*response, Message("user", f"{HEADING}\n{rules}"))


def read_principles(path: str | Path) -> tuple[Principle, ...]:
    """From YAML or JSON lines: name, text, negation, and where wanted weight and tags.

    Raises InputError naming file, place and field.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            rows: Any = YAML(typ="safe", pure=True).load(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of principles") from None
    except (YAMLError, ValueError) as error:
        raise InputError(f"{path}: not readable ({' '.join(str(error).split())})") from None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: a list of principles is needed, each with name, text and negation")
    found = tuple(_principle(row, f"{path}: principle {place}") for place, row in enumerate(rows, 1))
    names = [principle.name for principle in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: two principles are called {twice!r}")
    return found


def _principle(row: Any, where: str) -> Principle:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: write name, text and negation; got {row!r}")
    known = Principle.__dataclass_fields__
    for key in row:
        if key not in known:
            raise InputError(f"{where}: unknown field {key!r}.{nearest(str(key), known)}")
    for name in ("name", "text", "negation"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise InputError(f"{where}: its {name} is missing")
    weight, tags = row.get("weight", 1.0), row.get("tags", ())
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise InputError(f"{where}: weight must be a positive number; got {weight!r}")
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        raise InputError(f"{where}: tags must be a list of words; got {tags!r}")
    return Principle(
        name=row["name"], text=row["text"], negation=row["negation"], weight=float(weight), tags=tuple(tags)
    )


def find(principles: Sequence[Principle], told: Sequence[str]) -> tuple[Told, ...]:
    """By name, "not:" before it for the negation."""
    by_name = {principle.name: principle for principle in principles}
    found: list[Told] = []
    for word in told:
        name = word.removeprefix(NOT)
        if name not in by_name:
            raise InputError(f"principle {name!r} is not one of {', '.join(by_name)}.{nearest(name, by_name)}")
        found.append((by_name[name], -1 if word.startswith(NOT) else 1))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleSampler:
    """`num` principles for each rollout, drawn by weight without replacement, and the `fixed` ones always.

    boosts: tag -> what is added to the weight of principles with that tag when a prompt is of that kind.
    """

    principles: tuple[Principle, ...]
    num: int = 3
    boosts: Mapping[str, float] = field(default_factory=dict)
    fixed: tuple[Told, ...] = ()

    def sample(self, kind: str, rng: Random) -> tuple[Told, ...]:
        """What one rollout of a prompt of this kind is judged by."""
        left, drawn = list(self.principles), []
        for _ in range(min(self.num, len(left))):
            weights = [p.weight + (self.boosts.get(kind, 0.0) if kind in p.tags else 0.0) for p in left]
            place = rng.choices(range(len(left)), weights)[0]
            drawn.append((left.pop(place), 1))
        return (*drawn, *self.fixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolicReward(Settings):
    """bonus * min(cap, m length / unit), m = 1 or `reasoning` by kind, and `no_stop` for an answer that did not end.

    A programmatic reward: `--rules assay.rewards.principles:symbolic` has SALMON's own settings.
    """

    bonus: float = 5.0
    cap: float = 0.8
    unit: int = 1024  # tokens
    reasoning: float = -0.4
    no_stop: float = -6.0

    def __call__(
        self, num_tokens: Sequence[int], stopped: Sequence[bool], kind: Sequence[str | None] = ()
    ) -> list[float]:
        """The reward of each answer, from its length, whether it ended, and what kind of prompt it answers."""
        slopes = [self.reasoning if asked == "reasoning" else 1.0 for asked in kind or [None] * len(num_tokens)]
        return [
            self.bonus * min(self.cap, slope * length / self.unit) + (0.0 if ended else self.no_stop)
            for slope, length, ended in zip(slopes, num_tokens, stopped, strict=True)
        ]


symbolic = SymbolicReward()
