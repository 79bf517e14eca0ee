"""The best weights of a run that is watched, and its end where a limit was passed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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


class Keeper:
    """Keeps the policy of the best look at the oracle where `oracle_drop` is a limit, else the last within all limits.

    What is measured of a batch is about the policy that sampled it. The copies lie in memory and are part of the run's
    checkpoints.
    """

    def __init__(self, training: Training, settings: StopSettings) -> None:
        """To be called before the training resumes."""
        self.training, self.settings = training, settings
        self.stopping, self.reason = Stopping(settings), ""
        self.kept: Point | None = None
        self.sampled: Point | None = None  # the policy that samples, or sampled, the batch that is trained on
        training.places["keeper"] = self

    def start(self) -> None:
        """Before the first step of this process: what samples next is the policy as it is."""
        if self.settings.any and self.sampled is None:
            self.sampled = self.kept = self._now(self.training.step)

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each step: keep the weights, or stop the run."""
        if not self.settings.any:
            return
        if self.training.buffer.num_done > 1:  # further updates on one batch say nothing new of it
            metrics = {name: value for name, value in metrics.items() if name == "oracle"}
        self.reason = self.stopping.see(metrics)
        self.training.stopped = bool(self.reason)
        if self.settings.oracle_drop:
            if "oracle" in metrics and self.stopping.is_best:
                self.kept = self.sampled = self._now(step)
            return
        if not self.stopping.suspicious:
            self.kept = self.sampled
        if self.training.buffer.empty:
            self.sampled = self._now(step)

    def finish(self) -> dict[str, Any]:
        """Where the run was stopped go back to the kept weights, and say why and to which step."""
        if not self.reason or self.kept is None:
            return {}
        self._optimizer.restore(self.kept.weights)
        say(f"stopped after step {self.training.step}: {self.reason}; kept the policy of step {self.kept.step}")
        return {"stopped": self.reason, "kept_step": self.kept.step}

    def state_dict(self) -> dict[str, Any]:
        """As `Batches`; weights that are the training's own are left to it."""
        if not self.settings.any or self.kept is None or self.sampled is None:
            return {}
        facts = {"settings": asdict(self.settings), "stopping": self.stopping.state_dict(), "reason": self.reason}
        points = {point.step: point for point in (self.kept, self.sampled) if point.step != self.training.step}
        weights = {f"{step}.{name}": value for step, p in points.items() for name, value in p.weights.items()}
        return {**facts, "kept": self.kept.step, "sampled": self.sampled.step, **weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; under other limits than before what they had counted is void."""
        if not self.settings.any or not state:
            return
        self.stopping.load_state_dict(state["stopping"])
        if state["settings"] == asdict(self.settings):
            self.reason = state["reason"]
            self.training.stopped = bool(self.reason)
        else:
            self.stopping.beyond = {}
        self.kept, self.sampled = self._point(state, "kept"), self._point(state, "sampled")

    def _point(self, state: Mapping[str, Any], name: str) -> Point:
        step: int = state[name]
        if step == self.training.step:
            return self._now(step)
        prefix = f"{step}."
        return Point(step, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _now(self, step: int) -> Point:
        return Point(step, {name: master.clone() for name, master in self._optimizer.masters().items()})

    @property
    def _optimizer(self) -> FlatAdamW:
        optimizer = self.training.learners["policy"].optimizer
        assert optimizer is not None
        return optimizer
