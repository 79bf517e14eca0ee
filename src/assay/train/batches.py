"""Where batches come from, offline: items in a seeded order, resumable at any step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch

from assay.batch import TokenBatch

Item = TypeVar("Item")


class Stateful(Protocol):
    """What a run that goes on must find again as it was."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: JSON values and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class Batches(Stateful, Protocol):
    """An endless source of what one optimiser step reads, by stream."""

    def next(self) -> dict[str, TokenBatch]:
        """The next step's streams."""
        ...


class Joined:
    """The streams of several sources, side by side."""

    def __init__(self, *sources: Batches) -> None:
        self.sources = sources

    @property
    def facts(self) -> dict[str, float]:
        """What the sources tell of their last batch."""
        return {name: value for source in self.sources for name, value in getattr(source, "facts", {}).items()}

    def next(self) -> dict[str, TokenBatch]:
        """As `Batches`."""
        return {name: batch for source in self.sources for name, batch in source.next().items()}

    def state_dict(self) -> dict[str, Any]:
        """As `Batches`."""
        return {f"{i}.{key}": value for i, s in enumerate(self.sources) for key, value in s.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Batches`."""
        for index, source in enumerate(self.sources):
            mine = f"{index}."
            source.load_state_dict({k.removeprefix(mine): v for k, v in state.items() if k.startswith(mine)})


class Shuffled(Generic[Item]):
    """`size` items at a time, every item once an epoch, each epoch in an order of its own."""

    def __init__(self, items: Sequence[Item], size: int, *, seed: int) -> None:
        if not items:
            raise ValueError("there is nothing to train on")
        self.items, self.size, self.seed = items, size, seed
        self.drawn = 0  # items so far

    def next(self) -> list[Item]:
        """The next items; the last batch of an epoch is filled from the next one."""
        found: list[Item] = []
        while len(found) < self.size:
            epoch, place = divmod(self.drawn, len(self.items))
            order = torch.randperm(len(self.items), generator=torch.Generator().manual_seed(self.seed + epoch))
            chosen = order[place : place + self.size - len(found)].tolist()
            found += [self.items[index] for index in chosen]
            self.drawn += len(chosen)
        return found


class Offline:
    """Batches of fixed data: one shuffled source and one way to collate for each stream."""

    def __init__(self, streams: Mapping[str, tuple[Shuffled[Any], Callable[[list[Any]], TokenBatch]]]) -> None:
        self.streams = streams

    def next(self) -> dict[str, TokenBatch]:
        """As `Batches`."""
        return {name: collate(source.next()) for name, (source, collate) in self.streams.items()}

    def state_dict(self) -> dict[str, Any]:
        """As `Batches`."""
        return {name: source.drawn for name, (source, _) in self.streams.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Batches`."""
        for name, (source, _) in self.streams.items():
            source.drawn = state[name]
