"""Trees of segments, laid out one after another in a packed row, and what each token may see there.

A tree is trunks (prompts) and the responses that hang from them. Laid out depth first, an ancestor always comes
before its descendants, so a token sees the earlier tokens of its own segment and of the segments above it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from assay.batch import TokenBatch

WHOLE_TREE = 512  # tokens; a tree up to here is one attention block, a longer one is cut into query blocks
QUERY_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens in a row. `parent` is a segment index or -1, `depth` the position of its first token."""

    start: int
    length: int
    parent: int
    depth: int

    @property
    def stop(self) -> int:
        """One past its last token."""
        return self.start + self.length


@dataclass(slots=True)
class Block:
    """Queries `[first, last)` of a row and the keys any of them sees.

    `keys` is a slice where the keys are one run, else their indices [K]. `hidden` is True [Q, K] where a query
    must not see a key, None where it sees all.
    """

    first: int
    last: int
    keys: slice | Tensor
    hidden: Tensor | None
    masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def additive(self, repeat: int, dtype: torch.dtype) -> Tensor | None:
        """[1, repeat * Q, K] -inf on what is hidden, for `repeat` query heads; kept, since every layer asks again."""
        if self.hidden is None:
            return None
        if (repeat, dtype) not in self.masks:
            mask = torch.zeros(self.hidden.shape, dtype=dtype).masked_fill_(self.hidden, float("-inf"))
            self.masks[repeat, dtype] = mask.repeat(repeat, 1)[None]
        return self.masks[repeat, dtype]


@dataclass
class Layout:
    """Where the segments of a row lie and which of them belong to one tree."""

    segments: list[Segment]
    trees: list[tuple[int, int]]  # token ranges
    blocks_of: dict[int | None, list[Block]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """N, tokens of the row."""
        return self.trees[-1][1] if self.trees else 0

    @cached_property
    def segment_of(self) -> Tensor:
        """[N] the segment of each token."""
        lengths = torch.tensor([segment.length for segment in self.segments])
        return torch.repeat_interleave(torch.arange(len(self.segments)), lengths)

    @cached_property
    def positions(self) -> Tensor:
        """[N] position ids: they go on from the parent's end in every branch."""
        parts = [torch.arange(s.depth, s.depth + s.length) for s in self.segments]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)

    @cached_property
    def above(self) -> Tensor:
        """[S, S] True where the second segment is the first one or above it."""
        table = torch.eye(len(self.segments), dtype=torch.bool)
        for index, segment in enumerate(self.segments):
            if segment.parent >= 0:
                table[index] |= table[segment.parent]
        return table

    def visible(self, first: int, last: int, start: int, window: int | None) -> Tensor:
        """[last - first, last - start] True where query `first + i` sees key `start + j`."""
        queries, keys = torch.arange(first, last), torch.arange(start, last)
        seen = self.above[self.segment_of[queries]][:, self.segment_of[keys]] & (keys <= queries[:, None])
        if window is not None:
            seen &= self.positions[queries][:, None] - self.positions[keys] < window
        return seen

    def blocks(self, window: int | None = None) -> list[Block]:
        """The row's attention, cut into blocks of queries; kept, since every layer asks again."""
        if window not in self.blocks_of:
            self.blocks_of[window] = [
                self._block(first, min(first + step, stop), start, window)
                for start, stop in self.trees
                if stop > start
                for step in (stop - start if stop - start <= WHOLE_TREE else QUERY_BLOCK,)
                for first in range(start, stop, step)
            ]
        return self.blocks_of[window]

    def _block(self, first: int, last: int, start: int, window: int | None) -> Block:
        seen = self.visible(first, last, start, window)
        used = seen.any(dim=0)
        indices = used.nonzero().squeeze(1)
        low, high = int(indices[0]), int(indices[-1]) + 1
        if len(indices) == high - low:
            keys: slice | Tensor = slice(start + low, start + high)
        else:
            keys = indices + start
        hidden = ~seen[:, indices]
        return Block(first, last, keys, hidden if hidden.any() else None)


@dataclass(frozen=True)
class Packed:
    """Rows for one forward pass. B responses of at most T tokens; indices count over the flattened rows.

    ids, positions [R, L]; padding [R, L] True on real tokens, None where there is no padding; layout None where
    every response has a row of its own. `at[b, t]` is where response token t lies, `before[b, t]` where the token
    it follows lies; both are 0 where there is no such token, which `real` [B, T] and `follows` [B, T] tell.
    """

    ids: Tensor
    positions: Tensor
    padding: Tensor | None
    layout: Layout | None
    at: Tensor
    before: Tensor
    real: Tensor
    follows: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens the model computes, padding included."""
        return self.ids.numel()


def pack(batch: TokenBatch) -> Packed:
    """All trees of the batch in one row, every shared token once."""
    num_rows, width = batch.ids.shape
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(batch.prompts.parent):
        children.setdefault(parent, []).append(index)
    leaves: dict[int, list[int]] = {}
    for row, trunk in enumerate(batch.group.tolist()):
        leaves.setdefault(trunk, []).append(row)

    segments: list[Segment] = []
    trees: list[tuple[int, int]] = []
    parts: list[Tensor] = []
    at = torch.zeros(num_rows, width, dtype=torch.long)
    before = torch.full((num_rows, width), -1, dtype=torch.long)
    lengths = batch.lengths.tolist()
    place = 0

    def add(ids: Tensor, parent: int) -> int:
        nonlocal place
        depth = segments[parent].depth + segments[parent].length if parent >= 0 else 0
        segments.append(Segment(place, len(ids), parent, depth))
        parts.append(ids)
        place += len(ids)
        return len(segments) - 1

    def last_token(segment: int) -> int:
        while segment >= 0 and segments[segment].length == 0:
            segment = segments[segment].parent
        return segments[segment].stop - 1 if segment >= 0 else -1

    def walk(trunk: int, parent: int) -> None:
        here = add(batch.prompts.ids[trunk], parent)
        for child in children.get(trunk, ()):
            walk(child, here)
        for row in leaves.get(trunk, ()):
            length = lengths[row]
            start = segments[add(batch.ids[row, :length], here)].start
            at[row, :length] = torch.arange(start, start + length)
            if length:
                before[row, 1:length] = at[row, : length - 1]
                before[row, 0] = last_token(here)

    for root in children.get(-1, ()):
        start = place
        walk(root, -1)
        if place > start:  # a tree without tokens has no block of attention
            trees.append((start, place))
    layout = Layout(segments, trees)
    ids = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
    real = torch.arange(width) < batch.lengths[:, None]
    follows = real & (before >= 0)
    return Packed(ids[None], layout.positions[None], None, layout, at, before.clamp(min=0), real, follows)


def pad(batch: TokenBatch, pad_id: int) -> Packed:
    """One padded row for each response, its trunks repeated: for models that cannot take trees."""
    num_rows, width = batch.ids.shape
    lengths = batch.lengths.tolist()
    rows: list[Tensor] = []
    starts: list[int] = []
    for row, trunk in enumerate(batch.group.tolist()):
        chain = [batch.prompts.ids[index] for index in batch.prompts.chain(trunk)]
        starts.append(sum(len(part) for part in chain))
        rows.append(torch.cat([*chain, batch.ids[row, : lengths[row]]]))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    total = torch.tensor([len(row) for row in rows])
    padding = torch.arange(ids.shape[1]) < total[:, None]
    offset = torch.tensor(starts)[:, None] + torch.arange(width)
    real = torch.arange(width) < batch.lengths[:, None]
    base = (torch.arange(num_rows) * ids.shape[1])[:, None]
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    at = torch.where(real, base + offset, 0)
    follows = real & (offset > 0)
    before = torch.where(follows, base + offset - 1, 0)
    return Packed(ids, positions, padding, None, at, before, real, follows)


def plan(
    batch: TokenBatch,
    budget: int,
    *,
    fill: int | None = None,
    units: Sequence[list[int]] | None = None,
    shared: bool = True,
) -> list[Tensor]:
    """Rows of the batch for each micro-batch, at most `budget` tokens in each.

    Trees stay whole where they fit. One that does not is split over micro-batches, its trunk computed in each,
    between responses, or between the `units` of rows that a loss reads together (pairs, rankings). A unit larger than
    the budget gets a micro-batch of its own. Small trees share a micro-batch up to `fill` tokens, or as many as
    the largest one has.
    """
    fill = min(budget, fill or budget)
    units = [[row] for row in range(batch.num_rows)] if units is None else units
    trunk_length = [len(ids) for ids in batch.prompts.ids]
    chain_length = [sum(trunk_length[i] for i in batch.prompts.chain(t)) for t in range(len(batch.prompts))]
    root = [batch.prompts.root(t) for t in range(len(batch.prompts))]
    group, lengths = batch.group.tolist(), batch.lengths.tolist()

    if not shared:
        return _plan_padded(group, lengths, chain_length, fill, units)
    trees: dict[int, list[list[int]]] = {}
    for unit in units:
        trees.setdefault(root[group[unit[0]]], []).append(unit)
    pieces: list[tuple[int, list[int]]] = []
    for units_of_tree in trees.values():
        rows: list[int] = []
        trunks: set[int] = set()
        size = 0
        for rows_of_unit in units_of_tree:
            more = {i for row in rows_of_unit for i in batch.prompts.chain(group[row])}
            cost = sum(lengths[row] for row in rows_of_unit)
            grown = size + cost + sum(trunk_length[i] for i in more - trunks)
            if rows and grown > budget:
                pieces.append((size, rows))
                rows, trunks, size = [], set(), 0
                grown = cost + sum(trunk_length[i] for i in more)
            rows, trunks, size = rows + rows_of_unit, trunks | more, grown
        pieces.append((size, rows))
    fitting = [piece for piece in pieces if piece[0] <= budget]
    alone = [torch.tensor(rows) for size, rows in pieces if size > budget]
    return alone + _fill(fitting, max([fill, *(size for size, _ in fitting)]))


def _fill(pieces: list[tuple[int, list[int]]], budget: int) -> list[Tensor]:
    """Longest first into the emptiest of as few micro-batches as can hold them; rows in ascending order."""
    pieces = sorted(pieces, key=lambda piece: -piece[0])
    num_bins = max(1, -(-sum(size for size, _ in pieces) // budget))
    while True:
        bins: list[tuple[int, list[int]]] = [(0, []) for _ in range(num_bins)]
        for size, rows in pieces:
            best = min(range(num_bins), key=lambda index: bins[index][0])
            bins[best] = (bins[best][0] + size, bins[best][1] + rows)
        if num_bins >= len(pieces) or max(size for size, _ in bins) <= budget:
            return [torch.tensor(sorted(rows)) for _, rows in bins if rows]
        num_bins += 1


def _plan_padded(
    group: list[int], lengths: list[int], chain: list[int], budget: int, units: Sequence[list[int]]
) -> list[Tensor]:
    """Rows of similar length together, so that little is padding."""
    width = {rows[0]: max(chain[group[row]] + lengths[row] for row in rows) for rows in units}
    found: list[Tensor] = []
    current: list[int] = []
    for rows in sorted(units, key=lambda rows: -width[rows[0]]):
        longest = width[current[0]] if current else width[rows[0]]
        if current and longest * (len(current) + len(rows)) > budget:
            found.append(torch.tensor(current))
            current = []
        current = current + rows
    return [*found, torch.tensor(current)] if current else found
