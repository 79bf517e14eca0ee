"""When a run has gone far enough: limits on what is watched, passed several times in a row before they count."""

from collections.abc import Mapping
from dataclasses import dataclass

from assay.settings import InputError, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSettings(Settings):
    """Limits that end a run, 0 where there is none. What they look at is smoothed, so that one odd batch does nothing.

    The run then keeps the weights of the best look at the oracle where `oracle_drop` is a limit, else those that last
    sampled a batch within all limits. A gain below two standard errors of a look may be noise: until there is more, one
    standard error may be lost.
    """

    oracle_drop: float = 0.0  # share of what the oracle gained since the start that may be lost again
    kl: float = 0.0  # most nats an answer from the reference
    entropy: float = 0.0  # least nats a token
    length: float = 0.0  # most tokens an answer, as a multiple of the first batch's
    uncertainty: float = 0.0  # most disagreement of an ensemble, as a multiple of the first batch's
    patience: int = 2  # looks, or batches, in a row beyond a limit that end the run
    smoothing: float = 0.5  # weight of what came before in what is compared with a limit

    def __post_init__(self) -> None:
        if self.smoothing >= 1:
            raise InputError(f"stop.smoothing must be below 1, or nothing new is ever seen; got {self.smoothing}")

    @property
    def any(self) -> bool:
        """Whether anything can end the run."""
        return any((self.oracle_drop, self.kl, self.entropy, self.length, self.uncertainty))


class Stopping:
    """Follows the metrics of a run; its state goes into checkpoints as plain numbers."""

    def __init__(self, settings: StopSettings) -> None:
        self.settings = settings
        self.smooth: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.beyond: dict[str, int] = {}
        self.best = float("-inf")  # look at the oracle, as it was
        self.highest = float("-inf")  # smoothed look
        self.is_best = False  # whether the last look was the best so far
        self.error = 0.0  # standard error of the last look

    def see(self, metrics: Mapping[str, float]) -> str:
        """Why the run should end after these metrics; '' where it should not. Call once a step."""
        self.is_best = metrics.get("oracle", float("-inf")) > self.best
        self.best = max(self.best, metrics.get("oracle", float("-inf")))
        self.error = metrics.get("oracle_error", self.error)
        for name, measure in self._measures().items():
            if measure not in metrics:
                continue
            value = metrics[measure]
            before = self.smooth.get(measure, value)
            share = self.settings.smoothing
            self.smooth[measure] = share * before + (1 - share) * value
            self.first.setdefault(measure, value)
            limit, passed = self._limit(name, measure)
            self.beyond[name] = self.beyond.get(name, 0) + 1 if passed else 0
            if self.beyond[name] >= self.settings.patience:
                return f"{measure} is {self.smooth[measure]:.3g}, its limit {limit:.3g} (stop.{name})"
        return ""

    @property
    def suspicious(self) -> bool:
        """Whether some limit is passed already, though not for long enough."""
        return any(self.beyond.values())

    def _measures(self) -> dict[str, str]:
        """What each limit that is set looks at."""
        told = {"oracle_drop": "oracle", "kl": "kl", "entropy": "entropy", "length": "length_mean"}
        told["uncertainty"] = "rewards/model_uncertainty/mean"
        return {name: measure for name, measure in told.items() if getattr(self.settings, name)}

    def _limit(self, name: str, measure: str) -> tuple[float, bool]:
        """The limit, and whether the smoothed measure is beyond it."""
        now, setting = self.smooth[measure], getattr(self.settings, name)
        if name == "oracle_drop":
            self.highest = max(self.highest, now)
            gained = self.highest - self.first[measure]
            limit = self.highest - max(setting * gained, self.error if gained < 2 * self.error else 0.0)
            return limit, now < limit
        if name == "entropy":
            return setting, now < setting
        limit = setting * self.first[measure] if name in ("length", "uncertainty") else setting
        return limit, now > limit

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Plain numbers."""
        best = {"oracle": self.best, "smooth": self.highest, "error": self.error} if self.best > float("-inf") else {}
        beyond = {name: float(value) for name, value in self.beyond.items()}
        return {"smooth": self.smooth, "first": self.first, "beyond": beyond, "best": best}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """From `state_dict`."""
        self.smooth, self.first = dict(state["smooth"]), dict(state["first"])
        self.beyond = {name: int(value) for name, value in state["beyond"].items()}
        self.best, self.highest = (state["best"].get(name, float("-inf")) for name in ("oracle", "smooth"))
        self.error = state["best"].get("error", 0.0)
