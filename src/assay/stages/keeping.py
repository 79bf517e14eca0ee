"""The best weights of a run that is watched, and its end where a limit was passed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from assay.engine.optimizer import FlatAdamW
from assay.stages.progress import say
from assay.train.loop import Training
from assay.train.stopping import Stopping, StopSettings


@dataclass(frozen=True, slots=True)
class Point:
    """The policy after an optimiser step."""

    step: int
    weights: dict[str, Tensor]
    look: float = -math.inf  # what the oracle said of it, where it was asked


class Keeper:
    """Keeps the policy of the best look at the oracle where `oracle_drop` is a limit, else the last within all limits.

    What is measured of a batch is about the policy that sampled it, so a policy is kept when the batch after it is
    seen. The copies lie in memory and are part of the run's checkpoints. `oracle` says which one is asked, and of what.
    """

    def __init__(self, training: Training, settings: StopSettings, oracle: str = "") -> None:
        """To be called before the training resumes."""
        self.training, self.settings, self.oracle = training, settings, oracle
        self.stopping, self.reason = Stopping(settings), ""
        self.kept: Point | None = None
        self.waits: Point | None = None  # the policy that samples, or was looked at: kept if its batch is within limits
        self.another = False  # whether another oracle was asked before than is now
        training.places["keeper"] = self

    def start(self) -> None:
        """Before the first step of this process: what samples next is the policy as it is."""
        if self.settings.any and self.waits is None:
            self.waits = self.kept = self._now(self.training.step)

    def see(self, step: int, metrics: Mapping[str, float], scores: Sequence[float] = ()) -> None:
        """After each step: keep the weights, or stop the run. `scores` are as in `Stopping.see`."""
        if not self.settings.any:
            return
        again = self.training.buffer.num_done > 1  # further updates on one batch say nothing new of it
        if again:
            metrics = {name: value for name, value in metrics.items() if name == "oracle"}
        self.reason = self.stopping.see(metrics, scores)
        self.training.stopped = bool(self.reason)
        if not again and self.stopping.suspicious:
            self.waits = self.kept
        elif not again:
            self.kept = self.waits
        if not self.settings.oracle_drop:
            if self.training.buffer.empty:
                self.waits = self._now(step)
        elif "oracle" in metrics:
            self._look(step, metrics["oracle"])

    def begin_again(self, look: Mapping[str, float], scores: Sequence[float] = ()) -> None:
        """What another oracle says of the policy as it is, before training goes on."""
        self.stopping.see(look, scores)
        if "oracle" in look:
            self._look(self.training.step, look["oracle"])

    def _look(self, step: int, oracle: float) -> None:
        """The policy as it is now, where the oracle has said nothing better of one that may be kept."""
        assert self.waits is not None
        if oracle > self.waits.look:
            self.waits = self._now(step, oracle)
            if not self.settings.of_batches:
                self.kept = self.waits

    def finish(self) -> dict[str, Any]:
        """Where the run was stopped go back to the kept weights, and say why and to which step."""
        if not self.reason or self.kept is None:
            return {}
        self._optimizer.restore(self.kept.weights)
        say(f"stopped after step {self.training.step}: {self.reason}; kept the policy of step {self.kept.step}")
        return {"stopped": self.reason, "kept_step": self.kept.step}

    def state_dict(self) -> dict[str, Any]:
        """As `Batches`; weights that are the training's own are left to it."""
        if not self.settings.any or self.kept is None or self.waits is None:
            return {}
        facts = {"settings": asdict(self.settings), "stopping": self.stopping.state_dict(), "reason": self.reason}
        points = {point.step: point for point in (self.kept, self.waits) if point.step != self.training.step}
        weights = {f"{step}.{name}": value for step, p in points.items() for name, value in p.weights.items()}
        looks = {"oracle": self.oracle, "kept_look": self.kept.look, "waits_look": self.waits.look}
        return {**facts, **looks, "kept": self.kept.step, "waits": self.waits.step, **weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; under other limits than before what had been counted is void, and so is what was seen of
        another oracle."""
        if not self.settings.any or not state:
            return
        self.stopping.load_state_dict(state["stopping"])
        self.kept, self.waits = self._point(state, "kept"), self._point(state, "waits")
        self.another = bool(self.settings.oracle_drop) and state["oracle"] != self.oracle
        if self.another:
            self.stopping.forget_oracle()
            self.kept, self.waits = replace(self.kept, look=-math.inf), replace(self.waits, look=-math.inf)
        if state["settings"] != asdict(self.settings):
            self.stopping.beyond = {}
        elif not (self.another and "stop.oracle_drop" in state["reason"]):
            self.reason = state["reason"]
            self.training.stopped = bool(self.reason)

    def _point(self, state: Mapping[str, Any], name: str) -> Point:
        step, look = state[name], state[f"{name}_look"]
        if step == self.training.step:
            return self._now(step, look)
        prefix = f"{step}."
        return Point(step, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, look)

    def _now(self, step: int, look: float = -math.inf) -> Point:
        return Point(step, {name: master.clone() for name, master in self._optimizer.masters().items()}, look)

    @property
    def _optimizer(self) -> FlatAdamW:
        optimizer = self.training.learners["policy"].optimizer
        assert optimizer is not None
        return optimizer
