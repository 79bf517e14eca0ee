"""Tensors between stages: tables whose columns are named, typed and shape-checked.

Index `t` always speaks of response token `t`: `logprobs[b, t] = log p(ids[b, t] | prompt, ids[b, :t])`;
`values[b, t]` is the state before token `t`; `token_rewards[b, t]` is paid after it. With pairs, row `2i` is the
chosen response and row `2i + 1` the rejected one.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, get_type_hints

import torch
from jaxtyping import jaxtyped
from torch import Tensor

from assay.shapes import (
    PairFloat,
    RowBool,
    RowFloat,
    RowInt,
    RowLevels,
    TokenBool,
    TokenBytes,
    TokenFloat,
    TokenInt,
    TokenLevels,
)


@dataclass(frozen=True, slots=True)
class Trunks:
    """What responses hang from: token ids, each trunk with a parent trunk or -1. One without parent starts a tree.

    A prompt is a trunk; a rubric shared by prompts is a parent. `ids` may be empty: a response without prompt.
    """

    ids: tuple[Tensor, ...]
    parent: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.parent:
            object.__setattr__(self, "parent", (-1,) * len(self.ids))
        if len(self.parent) != len(self.ids):
            raise ValueError(f"{len(self.ids)} trunks but {len(self.parent)} parents")
        if any(not -1 <= parent < index for index, parent in enumerate(self.parent)):
            raise ValueError("a trunk's parent must come before it")

    def __len__(self) -> int:
        return len(self.ids)

    def chain(self, index: int) -> tuple[int, ...]:
        """The trunks from the root down to `index`."""
        found: list[int] = []
        while index >= 0:
            found.append(index)
            index = self.parent[index]
        return tuple(reversed(found))

    def root(self, index: int) -> int:
        """The first of the chain."""
        return self.chain(index)[0]

    def select(self, wanted: Iterable[int]) -> tuple["Trunks", dict[int, int]]:
        """These trunks and their ancestors, and where each went."""
        keep = sorted({ancestor for index in wanted for ancestor in self.chain(index)})
        place = {old: new for new, old in enumerate(keep)} | {-1: -1}
        return Trunks(tuple(self.ids[old] for old in keep), tuple(place[self.parent[old]] for old in keep)), place


_annotated = functools.cache(get_type_hints)  # resolving names takes longer than checking a table


class Table:
    """Columns that share their row count. One that no stage has filled is absent: reading it raises."""

    declared: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, *, declared: Mapping[str, Any] | None = None, **columns: Any) -> None:
        known = {**_annotated(type(self)), **(declared or {})}
        with jaxtyped("context"):  # B and T are bound once, so the columns must agree
            for name, value in columns.items():
                if name not in known:
                    raise TypeError(
                        f"{type(self).__name__} has no column {name!r}; algorithms declare theirs in `columns`"
                    )
                if not isinstance(value, known[name]):
                    got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                    raise TypeError(f"{type(self).__name__}.{name}: expected {known[name]}, got {got}")
        self.__dict__.update(columns)
        self.__dict__["declared"] = dict(declared or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"no stage filled {type(self).__name__}.{name}: declare it in the algorithm's `columns` (data), fill it in "
            f"`prepare`, or ask for it in the term's `reads` (model output)"
        )

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__ and name != "declared"

    @property
    def columns(self) -> dict[str, Any]:
        """Name -> value of every filled column."""
        return {name: value for name, value in self.__dict__.items() if name != "declared"}

    def fill(self, *, declared: Mapping[str, Any] | None = None, **columns: Any) -> Self:
        """A new table with these columns added or replaced."""
        return type(self)(declared={**self.__dict__["declared"], **(declared or {})}, **{**self.columns, **columns})


class TokenBatch(Table):
    """Responses and what is known of them. A pair column has one row per two responses."""

    prompts: Trunks
    ids: TokenInt
    mask: TokenBool  # True where the loss counts
    lengths: RowInt  # tokens of each response, counted or not; the rest is padding
    group: RowInt  # the trunk that a response hangs from
    ranking: RowInt  # which ranking a row belongs to: 0, 0, 0, 1, 1, ..., best first in each
    key: RowInt  # tells judgements apart: the same for all rows of one, the same in every epoch
    left_out: RowBool  # what prepare reads and the loss does not; absent: nothing
    weight: RowFloat  # how much a row counts in reductions; absent: 1
    rewards: RowFloat
    token_rewards: TokenFloat
    sampler_logprobs: TokenFloat
    old_logprobs: TokenFloat
    ref_logprobs: TokenFloat
    values: TokenFloat
    advantages: TokenFloat
    returns: TokenFloat
    source: RowInt  # who drew a response: 0 the policy, k the k-th of what the algorithm draws beside it
    allowed: TokenBytes  # the vocabulary that a token was drawn from, a bit each; absent: all of it
    margin: PairFloat
    preference: PairFloat  # probability that row 2i is preferred; absent: 1

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.ids)

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors there; prompts, which only the layout reads, stay."""
        if device == self.ids.device:
            return self
        columns = {name: value if name == "prompts" else value.to(device) for name, value in self.columns.items()}
        return type(self)(declared=self.__dict__["declared"], **columns)

    def select(self, rows: Tensor) -> Self:
        """A new batch of these rows, in this order, cut to their longest response; torn pairs lose pair columns."""
        width = int(self.lengths[rows].max()) if len(rows) else 0
        pairs = len(rows) % 2 == 0 and bool((rows[0::2] + 1 == rows[1::2]).all() and (rows[0::2] % 2 == 0).all())
        prompts, place = self.prompts.select(self.group[rows].tolist())
        columns: dict[str, Any] = {"prompts": prompts}
        for name, value in self.columns.items():
            if name == "prompts":
                continue
            if name == "group":
                columns[name] = torch.tensor([place[g] for g in value[rows].tolist()], dtype=value.dtype)
            elif name == "ranking":
                columns[name] = torch.unique_consecutive(value[rows], return_inverse=True)[1]
            elif value.shape[0] * 2 == self.num_rows:
                if pairs:
                    columns[name] = value[rows[0::2] // 2]
            elif value.ndim > 1 and value.shape[1] == self.ids.shape[1]:
                columns[name] = value[rows, :width]
            else:
                columns[name] = value[rows]
        return type(self)(declared=self.__dict__["declared"], **columns)

    @classmethod
    def cat(cls, batches: Sequence[Self]) -> Self:
        """The rows of several batches with the same columns, one after the other, padded to the longest response."""
        first, width = batches[0], max(batch.ids.shape[1] for batch in batches)
        trunks = [len(batch.prompts) for batch in batches]
        starts = [sum(trunks[:i]) for i in range(len(batches))]
        ids = tuple(ids for batch in batches for ids in batch.prompts.ids)
        parents = [
            p + start if p >= 0 else -1 for b, start in zip(batches, starts, strict=True) for p in b.prompts.parent
        ]
        columns: dict[str, Any] = {"prompts": Trunks(ids, tuple(parents))}
        for name, value in first.columns.items():
            parts = [batch.columns[name] for batch in batches]
            if name == "prompts":
                continue
            if name == "group":
                parts = [part + start for part, start in zip(parts, starts, strict=True)]
            elif name == "ranking":
                sizes = [int(part.max()) + 1 for part in parts]
                parts = [part + sum(sizes[:i]) for i, part in enumerate(parts)]
            elif value.ndim > 1 and value.shape[1] == first.ids.shape[1] and value.shape[0] == first.num_rows:
                pad = torch.nn.functional.pad
                parts = [pad(p, (*(0, 0) * (p.ndim - 2), 0, width - p.shape[1])) for p in parts]
            columns[name] = torch.cat(parts)
        return cls(declared=first.__dict__["declared"], **columns)


class ModelOutput(Table):
    """What a forward pass yields, in the order of the batch's rows."""

    logprobs: TokenFloat
    entropy: TokenFloat
    values: TokenFloat
    token_rewards: TokenFloat
    rewards: RowFloat
    outputs: RowLevels  # all numbers of a reward head with several
    token_outputs: TokenLevels  # the same, at every token
    parameters: dict  # what a likelihood learns beside the model, by name
    vocabulary: dict  # what vocabulary functions returned: name -> [B, T]


Role = Literal["policy", "value", "reward"]
Reduction = Literal["token", "sequence", "response", "pair", "ranking"]
Metrics = Mapping[str, Tensor]
LossFn = Callable[[ModelOutput, TokenBatch], tuple[Tensor, Metrics]]
VocabularyFn = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""`f(logits [C, V], columns {name: [C]}) -> [C]`, run on chunks of response tokens, forward and backward."""

READS: Mapping[str, tuple[str, ...]] = {"policy": ("logprobs",), "value": ("values",), "reward": ("rewards",)}


@dataclass(frozen=True, slots=True)
class Term:
    """One loss: which learner's output it reads, over which stream of data, and how its values become a number.

    `fn` returns unreduced values: `[B, T]` for the reductions "token" (mean over counted tokens) and "sequence"
    (mean over responses of their token means), `[B]` for "response", `[P]` for "pair", `[G]` for "ranking". Its metrics
    are reduced with the same weights, each of the loss's shape. Where nothing counts there are no metrics.
    """

    learner: Role
    fn: LossFn
    reduction: Reduction
    weight: float = 1.0
    stream: str = "main"
    reads: tuple[str, ...] = ()
    vocabulary: Mapping[str, VocabularyFn] = field(default_factory=dict)
    own: bool = False  # only responses that the policy drew count, those of `source` 0

    def __post_init__(self) -> None:
        if not self.reads:
            object.__setattr__(self, "reads", READS[self.learner])
