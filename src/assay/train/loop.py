"""The loop. Every method trains here; they differ in the algorithm and in where batches come from."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from assay.algorithms import Algorithm, Memory
from assay.batch import Term
from assay.engine.checkpoint import load_checkpoint, save_checkpoint
from assay.engine.learner import Lagging, Learner
from assay.settings import InputError, Settings
from assay.train.batches import Batches, Stateful
from assay.train.buffer import Buffer, Streams, flat
from assay.train.interrupts import Interrupts
from assay.train.schedule import Schedule, learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserSettings(Settings):
    """AdamW and its schedule."""

    lr: float = 1e-5
    schedule: Schedule = "linear"
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.0
    max_norm: float = 1.0  # the gradient is scaled down to this norm


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSettings(Settings):
    """How often the state is saved, and how many are kept."""

    every: int = 50  # optimiser steps; 0 never
    keep: int = 1


Report = Callable[[dict[str, float]], None]


class Training:
    """One run: learners, an algorithm, batches, and where they stand."""

    def __init__(
        self,
        algorithm: Algorithm,
        learners: Mapping[str, Learner],
        batches: Batches,
        *,
        num_steps: int,
        optimiser: OptimiserSettings,
        checkpoints: CheckpointSettings,
        folder: Path,
        identity: Mapping[str, Any],
        critic_alone: int = 0,
    ) -> None:
        """`identity` says what makes this run this run (config, data hashes): a resumed one must have the same.

        In the first `critic_alone` steps only the terms of the value learner are trained.
        """
        self.algorithm, self.learners, self.batches = algorithm, learners, batches
        self.num_steps, self.optimiser, self.checkpoints = num_steps, optimiser, checkpoints
        self.critic_alone = critic_alone
        self.folder, self.identity = folder, dict(identity)
        self.step = 0
        self.buffer = Buffer(algorithm)
        self.places: dict[str, Stateful] = {"batches": batches, "buffer": self.buffer}  # parts of checkpoints
        self.memory: Memory = {}
        self.interrupts = Interrupts(saving=checkpoints.every > 0)
        self.untold: dict[str, float] = {}  # metrics of a step that `report` failed to take
        self.stopped = False  # set by whoever watches: no further step is computed

    @property
    def told(self) -> int:
        """Steps whose metrics are where they belong."""
        return self.step - bool(self.untold)

    def resume(self) -> bool:
        """Go on from the newest checkpoint under the folder; False if there is none."""
        found = load_checkpoint(self.folder)
        if found is None:
            return False
        if changed := _differences(found.state["identity"], self.identity):
            raise InputError(
                f"{self.folder}: the run there had other settings ({'; '.join(changed[:5])}); "
                f"use those, or another run directory"
            )
        for name, learner in self._kept():
            learner.load_state_dict(_under(found.tensors, f"{name}."))
        self.step = found.step
        for name, place in self.places.items():
            place.load_state_dict({**found.state.get(name, {}), **_under(found.tensors, f"{name}.")})
        self.memory = _under(found.tensors, "memory.")
        torch.set_rng_state(found.tensors["rng"])
        self.untold = found.state.get("untold", {})
        return True

    def save(self) -> Path:
        """A checkpoint of everything that `resume` needs."""
        tensors: dict[str, Tensor] = {"rng": torch.get_rng_state()}
        for name, learner in self._kept():
            tensors |= {f"{name}.{key}": value for key, value in learner.state_dict().items()}
        tensors |= {f"memory.{name}": value for name, value in self.memory.items()}
        kept: dict[str, Any] = {"identity": self.identity, "untold": self.untold}
        for name, place in self.places.items():
            state = place.state_dict()
            tensors |= {f"{name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            kept[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        return save_checkpoint(self.folder, self.step, tensors, kept, self.checkpoints.keep)

    def run(self, report: Report, *, until: int | None = None) -> None:
        """Train up to `num_steps`, or `until`; `report` gets each step's metrics.

        Ctrl-C or SIGTERM raises KeyboardInterrupt, once all that was computed is saved; a second one at once. It is
        saved as well before an error of the batches or of `report` goes on, which gets that step again.
        """
        last = self.num_steps if until is None else min(until, self.num_steps)
        every = self.checkpoints.every
        with self.interrupts:
            if self.untold:
                self._tell(report)
            while self.step < last and not self.stopped and not self.interrupts.asked:
                began = time.perf_counter()
                metrics = self.one_step()
                metrics["seconds"] = time.perf_counter() - began
                self.step += 1
                self.untold = {"step": self.step, **metrics}
                self._tell(report)
                if self.interrupts.asked or (every and self.step % every == 0 and self.step < self.num_steps):
                    self.save()
        if self.interrupts.asked:
            raise KeyboardInterrupt

    def one_step(self) -> dict[str, float]:
        """Batch, prepare, gradient, update."""
        facts: dict[str, float] = {}
        # the policy's first step is on credit by the critic as it is by then
        if self.buffer.empty or 0 < self.critic_alone == self.step:
            streams = self._fetch()
            facts = getattr(self.batches, "facts", {})
            main = self.algorithm.prepare(streams["main"], self.learners, self.memory)
            if "left_out" in main:
                main = main.fill(mask=main.mask & ~main.left_out[:, None])
            self.buffer.fill({**streams, "main": main})
        streams = self.buffer.next()
        terms = self.algorithm.losses()
        if self.step < self.critic_alone:
            terms = tuple(term for term in terms if term.learner == "value")
        try:
            metrics = self._update(streams, terms)
        except FloatingPointError as error:
            path = self._keep_batch(streams)
            raise FloatingPointError(f"step {self.step + 1}: {error}; what it was trained on is in {path}") from error
        for _, learner in self._kept():
            if isinstance(learner, Lagging):
                learner.follow(self.step + 1)
        return {**metrics, **facts}

    def _tell(self, report: Report) -> None:
        """Report the last step; an oracle that cannot be asked, or a full disk, does not cost what was trained."""
        try:
            report(dict(self.untold))
        except Exception:
            if self.interrupts.saving:
                self.save()
            raise
        self.untold = {}

    def _fetch(self) -> Streams:
        """The next batch. What breaks off here, a signal too, saves the run as it was."""
        if not self.interrupts.saving:
            return self.batches.next()
        place, rng = self.batches.state_dict(), torch.get_rng_state()
        try:
            with self.interrupts.at_once():
                return self.batches.next()
        except (Exception, KeyboardInterrupt):
            self.batches.load_state_dict(place)
            torch.set_rng_state(rng)
            if self.step:
                self.save()
            raise

    def _update(self, streams: Streams, terms: Sequence[Term]) -> dict[str, float]:
        """Gradients of all terms, then a step of every learner that has some; the losses' metrics and the rate."""
        metrics: dict[str, float] = {}
        moving = dict.fromkeys(self.learners[term.learner] for term in terms)
        for learner in moving:
            mine = [term for term in terms if self.learners[term.learner] is learner]
            found = learner.forward_backward(streams, mine)
            metrics = {**metrics, **found, "loss": metrics.get("loss", 0.0) + found.get("loss", 0.0)}
        for learner in moving if len(moving) > 1 else ():  # before any of them moves
            learner.check_gradient()
        rates = [self._rate(learner) for learner in moving]
        steps = zip(moving, rates, strict=True)
        norms = [learner.step(lr=lr, max_norm=self.optimiser.max_norm) for learner, lr in steps]
        return {**metrics, "grad_norm": max(norms), "lr": rates[0]}

    def _rate(self, learner: Learner) -> float:
        """The learning rate of this step; the schedule of who waits for the critic begins when it does.

        A critic that is trained alone first has no warm-up: this is the policy's.
        """
        told, first = self.optimiser, learner is self.learners.get("value")
        waited = 0 if first else self.critic_alone
        warmup = 0.0 if first and self.critic_alone else told.warmup
        left = self.num_steps - waited
        return learning_rate(self.step - waited, left, peak=told.lr, warmup=warmup, schedule=told.schedule)

    def _keep_batch(self, streams: Streams) -> Path:
        """A file of what was trained on when a number was not finite: `stream.column` -> tensor."""
        path = self.folder / f"failed-step-{self.step + 1}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {f"{name}.{key}": value for name, batch in streams.items() for key, value in flat(batch).items()}
        save_file({name: value.contiguous().clone() for name, value in columns.items()}, path)
        return path

    def _kept(self) -> list[tuple[str, Learner]]:
        """The learners whose weights change, by the name that checkpoints know them by."""
        trained = [(f"learner{index}", learner) for index, learner in enumerate(self._trained())]
        return trained + [(role, learner) for role, learner in self.learners.items() if isinstance(learner, Lagging)]

    def _trained(self) -> list[Learner]:
        """The learners that terms train, each once."""
        return list(dict.fromkeys(self.learners[term.learner] for term in self.algorithm.losses()))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Each leaf that differs, as `name: old -> new`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        return [
            line
            for key in keys
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if old == new else [f"{name}: {old} -> {new}"]
