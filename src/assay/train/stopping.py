"""When a run has gone far enough: limits on what is watched, passed several times in a row before they count."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from assay.settings import InputError, Settings

SURE = 1.64  # standard errors of a fall that chance passes once in twenty looks


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSettings(Settings):
    """Limits that end a run, 0 where there is none. What they look at is smoothed, so that one odd batch does nothing.

    The run then keeps the weights of the best look at the oracle where `oracle_drop` is a limit, else those that last
    sampled a batch within all limits, smoothed and not; so must the batch after a look for it to count. Looks are
    compared prompt by prompt: a fall from the highest that may be chance is none.
    """

    oracle_drop: float = 0.0  # share of what the oracle gained since the start that may be lost again
    kl: float = 0.0  # most nats an answer from the reference
    entropy: float = 0.0  # least nats a token
    length: float = 0.0  # most tokens an answer, as a multiple of the first batch's
    uncertainty: float = 0.0  # most disagreement of an ensemble, as a multiple of the first batch's
    patience: int = 2  # looks, or batches, in a row beyond a limit that end the run
    smoothing: float = 0.5  # weight of what came before in what is compared with a limit

    def __post_init__(self) -> None:
        limits = ("oracle_drop", "kl", "entropy", "length", "uncertainty")
        if wrong := next((name for name in limits if getattr(self, name) < 0), ""):
            raise InputError(f"stop.{wrong} must be 0, for none, or more; got {getattr(self, wrong)}")
        if self.smoothing >= 1:
            raise InputError(f"stop.smoothing must be below 1, or nothing new is ever seen; got {self.smoothing}")

    @property
    def of_batches(self) -> bool:
        """Whether a limit is on what is measured of each batch."""
        return any((self.kl, self.entropy, self.length, self.uncertainty))

    @property
    def any(self) -> bool:
        """Whether anything can end the run."""
        return bool(self.oracle_drop) or self.of_batches


@dataclass(slots=True)
class Looks:
    """What an oracle said of the watched prompts: at first, now and at its highest, the latter two smoothed."""

    first: list[float]
    now: list[float]
    highest: list[float]

    def add(self, scores: Sequence[float], smoothing: float) -> None:
        """A further look at the same prompts."""
        self.now = [smoothing * b + (1 - smoothing) * s for b, s in zip(self.now, scores, strict=True)]
        self.highest = max(self.highest, self.now, key=statistics.fmean)

    def least(self, share: float) -> float:
        """The lowest mean that may follow: so much of the gain is not lost, or not surely."""
        top = statistics.fmean(self.highest)
        falls = [h - n for h, n in zip(self.highest, self.now, strict=True)]
        error = statistics.stdev(falls) / math.sqrt(len(falls)) if len(falls) > 1 else 0.0
        return top - max(share * (top - statistics.fmean(self.first)), SURE * error)


class Stopping:
    """Follows the metrics of a run; its state goes into checkpoints as plain numbers."""

    def __init__(self, settings: StopSettings) -> None:
        self.settings = settings
        self.smooth: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.beyond: dict[str, int] = {}
        self.outside: dict[str, bool] = {}  # limits on batches: whether the last one, not smoothed, was beyond
        self.looks: Looks | None = None

    def see(self, metrics: Mapping[str, float], scores: Sequence[float] = ()) -> str:
        """Why the run should end after these metrics; '' where it should not. Call once a step.

        `scores` are what the oracle said of each watched prompt, always in the same order, where it looked.
        """
        reason = ""
        for name, measure in self._measures().items():
            if measure not in metrics:
                continue
            value = metrics[measure]
            smooth, limit = self._look(scores or [value]) if name == "oracle_drop" else self._follow(name, value)
            self.beyond[name] = self.beyond.get(name, 0) + 1 if _passed(name, smooth, limit) else 0
            if name != "oracle_drop":
                self.outside[name] = _passed(name, value, limit)
            if self.beyond[name] >= self.settings.patience:
                reason = reason or f"{measure} is {smooth:.3g}, its limit {limit:.3g} (stop.{name})"
        return reason

    @property
    def suspicious(self) -> bool:
        """Whether a limit on batches is passed already, by the last batch or smoothed, though not for long enough."""
        return any(self.outside.values()) or any(self.beyond.get(name, 0) for name in self.outside)

    def forget_oracle(self) -> None:
        """Begin anew with what was seen of the oracle: it is another one now."""
        self.beyond.pop("oracle_drop", None)
        self.looks = None

    def _look(self, scores: Sequence[float]) -> tuple[float, float]:
        """The oracle's mean, smoothed, and the least it may be."""
        if self.looks is None:
            self.looks = Looks(*[list(scores)] * 3)
        else:
            self.looks.add(scores, self.settings.smoothing)
        return statistics.fmean(self.looks.now), self.looks.least(self.settings.oracle_drop)

    def _follow(self, name: str, value: float) -> tuple[float, float]:
        """What is compared with the limit on a batch, and that limit."""
        share, setting = self.settings.smoothing, getattr(self.settings, name)
        smooth = self.smooth[name] = share * self.smooth.get(name, value) + (1 - share) * value
        first = self.first.setdefault(name, value)
        return smooth, setting * first if name in ("length", "uncertainty") else setting

    def _measures(self) -> dict[str, str]:
        """What each limit that is set looks at."""
        told = {"oracle_drop": "oracle", "kl": "kl", "entropy": "entropy", "length": "length_mean"}
        told["uncertainty"] = "rewards/model_uncertainty/mean"
        return {name: measure for name, measure in told.items() if getattr(self.settings, name)}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Plain numbers."""
        counted = {"smooth": self.smooth, "first": self.first, "beyond": self.beyond, "outside": self.outside}
        return {**counted, "looks": {} if self.looks is None else asdict(self.looks)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """From `state_dict`."""
        self.smooth, self.first = dict(state["smooth"]), dict(state["first"])
        self.beyond, self.outside = dict(state["beyond"]), dict(state["outside"])
        self.looks = Looks(**state["looks"]) if state["looks"] else None


def _passed(name: str, value: float, limit: float) -> bool:
    return value < limit if name in ("oracle_drop", "entropy") else value > limit
