"""Batches of comparisons whose labels move with the model (`assay.rewards.ids`)."""

from collections.abc import Callable, Mapping
from typing import Any

from assay.batch import TokenBatch
from assay.rewards.ids import IDS, Labels
from assay.shapes import PairFloat
from assay.train.batches import Batches


class Moving:
    """The main stream of `batches` with the labels of its comparisons as they stand, found by `key`.

    `difference` tells the model's reward of the chosen minus that of the rejected. With `ids.update` "step" the labels
    of a batch move once it was trained on: by the model's belief after the update ("paper") or before ("simultaneous").
    With "epoch" whoever trains calls `labels.move`.
    """

    def __init__(
        self, batches: Batches, labels: Labels, ids: IDS, difference: Callable[[TokenBatch], PairFloat]
    ) -> None:
        self.batches, self.labels, self.ids, self.difference = batches, labels, ids, difference
        self.trained: TokenBatch | None = None  # a batch whose labels have yet to move
        self.before: PairFloat | None = None  # what was believed of it before the update

    def next(self) -> dict[str, TokenBatch]:
        """As `Batches`."""
        self._settle()
        streams = self.batches.next()
        main = streams["main"]
        streams["main"] = main.fill(preference=self.labels.of(main.key[0::2]))
        if self.ids.update == "step":
            self.trained = main
            self.before = self.difference(main) if self.ids.order == "simultaneous" else None
        return streams

    def _settle(self) -> None:
        if self.trained is None:
            return
        believed = self.before if self.before is not None else self.difference(self.trained)
        self.labels.move(self.trained.key[0::2], believed, self.ids)
        self.trained = self.before = None

    def state_dict(self) -> dict[str, Any]:
        """As `Batches`; the labels are part of it."""
        self._settle()
        labels = {"labels": self.labels.values, "num_moves": self.labels.num_moves}
        return {**labels, **{f"inner.{name}": value for name, value in self.batches.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Batches`."""
        self.labels.values.copy_(state["labels"])
        self.labels.num_moves = state["num_moves"]
        self.trained = self.before = None
        self.batches.load_state_dict(
            {name.removeprefix("inner."): value for name, value in state.items() if name.startswith("inner.")}
        )
