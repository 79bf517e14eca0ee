"""What was sampled and prepared, and the minibatches that are still to come of it."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from torch import Tensor

from assay.algorithms import Algorithm
from assay.batch import TokenBatch, Trunks

Streams = dict[str, TokenBatch]


def passes(algorithm: Algorithm) -> tuple[int, int]:
    """How often each batch is trained on, and in how many parts."""
    return getattr(algorithm, "num_epochs", 1), getattr(algorithm, "num_minibatches", 1)


def updates(algorithm: Algorithm) -> int:
    """Optimiser steps on each batch."""
    return math.prod(passes(algorithm))


class Buffer:
    """`num_epochs` passes over each prepared batch, each in `num_minibatches` parts of whole groups, in a seeded order.

    A group is the responses that hang from one trunk; where there are fewer groups than parts, there are fewer parts.
    With `replay` "cumulative" the parts are drawn from all groups so far, as many groups as the newest batch has; what
    the algorithm calls `newest`, columns with one number for a batch, is the newest batch's in all of them. The other
    streams are cut into as many parts, in their own order.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.num_epochs, self.num_parts = passes(algorithm)
        self.cumulative = getattr(algorithm, "replay", "latest") == "cumulative"
        self.newest: tuple[str, ...] = getattr(algorithm, "newest", ())
        self.main: TokenBatch | None = None
        self.streams: Streams = {}
        self.order: list[list[int]] = []  # the groups of each part to come
        self.num_drawn = 0  # parts of the batch, those that are done too

    @property
    def empty(self) -> bool:
        """Whether it is time to sample again."""
        return not self.order

    @property
    def num_done(self) -> int:
        """How many parts of the newest batch were handed out."""
        return self.num_drawn - len(self.order)

    def fill(self, streams: Streams) -> None:
        """With what was just prepared, in the place of what was still to come."""
        new = streams["main"]
        known = 0 if self.main is None or not self.cumulative else _num_groups(self.main)
        self.main = TokenBatch.cat([self.main, new]) if known and self.main is not None else new
        if known:
            rows = self.main.num_rows
            self.main = self.main.fill(**{name: new.columns[name][:1].repeat(rows) for name in self.newest})
        self.streams = {name: batch for name, batch in streams.items() if name != "main"}
        size, self.order = _num_groups(new), []
        for _ in range(self.num_epochs):
            whole = self.num_epochs * self.num_parts == 1 and not known  # nothing to choose: no random number is spent
            drawn = list(range(size)) if whole else torch.randperm(known + size).tolist()[:size]
            ends = [i * size // self.num_parts for i in range(self.num_parts + 1)]
            self.order += [drawn[first:last] for first, last in itertools.pairwise(ends) if last > first]
        self.num_drawn = len(self.order)

    def next(self) -> Streams:
        """The next part of every stream."""
        assert self.main is not None
        done = self.num_done
        groups = self.order.pop(0)
        found = {name: _part(batch, done, self.num_drawn) for name, batch in self.streams.items()}
        whole = groups == list(range(_num_groups(self.main)))
        return {"main": self.main if whole else _of_groups(self.main, groups), **found}

    def state_dict(self) -> dict[str, Any]:
        """JSON values and tensors; nothing where there is nothing to come and nothing to replay."""
        kept = {} if self.empty else self.streams
        if self.main is not None and (self.cumulative or not self.empty):
            kept = {"main": self.main, **kept}
        state: dict[str, Any] = {} if self.empty else {"order": list(self.order), "num_drawn": self.num_drawn}
        for name, batch in kept.items():
            state |= {f"{name}.{column}": value for column, value in flat(batch).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        columns: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key not in ("order", "num_drawn"):
                stream, _, name = key.partition(".")
                columns.setdefault(stream, {})[name] = value
        found = {stream: _batch(flat) for stream, flat in columns.items()}
        self.main = found.pop("main", None)
        self.streams, self.order = found, [list(groups) for groups in state.get("order", [])]
        self.num_drawn = state.get("num_drawn", 0)


def _num_groups(batch: TokenBatch) -> int:
    """Trunks that responses hang from; others are those trunks' parents."""
    return len(batch.group.unique())


def _of_groups(batch: TokenBatch, groups: list[int]) -> TokenBatch:
    """The rows of these groups, by their place; rows of one group stay side by side and in their order."""
    found, number = torch.unique(batch.group, return_inverse=True)
    place = torch.full((len(found),), len(groups))
    place[torch.tensor(groups, dtype=torch.long)] = torch.arange(len(groups))
    at = place[number]
    order = torch.argsort(at, stable=True)
    return batch.select(order[: int((at < len(groups)).sum())])


def _part(batch: TokenBatch, index: int, num: int) -> TokenBatch:
    """The `index`-th of `num` even parts of a batch's groups."""
    if num == 1:
        return batch
    size = _num_groups(batch)
    return _of_groups(batch, list(range(index * size // num, (index + 1) * size // num)))


def flat(batch: TokenBatch) -> dict[str, Any]:
    """A batch as named tensors."""
    prompts = batch.prompts
    columns = {name: value for name, value in batch.columns.items() if name != "prompts"}
    lengths = torch.tensor([len(ids) for ids in prompts.ids])
    ids = torch.cat(prompts.ids) if prompts.ids else torch.zeros(0, dtype=torch.long)
    told = {"ids": ids, "lengths": lengths, "parent": torch.tensor(prompts.parent)}
    return {**columns, **{f"prompts.{name}": value for name, value in told.items()}}


def _batch(state: Mapping[str, Tensor]) -> TokenBatch:
    """The batch that `flat` took apart."""
    ids = state["prompts.ids"].split(state["prompts.lengths"].tolist())
    columns = {name: value for name, value in state.items() if not name.startswith("prompts.")}
    declared = {name: Tensor for name in columns if name not in get_type_hints(TokenBatch)}
    return TokenBatch(declared=declared, prompts=Trunks(ids, tuple(state["prompts.parent"].tolist())), **columns)
