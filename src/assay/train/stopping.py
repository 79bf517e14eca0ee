"""When a run has gone far enough: limits on what is watched, passed several times in a row before they count."""

from collections.abc import Mapping
from dataclasses import dataclass

from assay.settings import InputError, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSettings(Settings):
    """Limits that end a run, 0 where there is none. What they look at is smoothed, so that one odd batch does nothing.

    The run then keeps the weights of the best look at the oracle where `oracle_drop` is a limit, else those that last
    sampled a batch within all limits, smoothed and not; so must the batch after a look for it to count. A gain below
    two standard errors of a look may be noise: until there is more, one standard error may be lost.
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


class Stopping:
    """Follows the metrics of a run; its state goes into checkpoints as plain numbers."""

    def __init__(self, settings: StopSettings) -> None:
        self.settings = settings
        self.smooth: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.beyond: dict[str, int] = {}
        self.outside: dict[str, bool] = {}  # limits on batches: whether the last one, not smoothed, was beyond
        self.highest = float("-inf")  # smoothed look at the oracle
        self.error = 0.0  # standard error of the last look

    def see(self, metrics: Mapping[str, float]) -> str:
        """Why the run should end after these metrics; '' where it should not. Call once a step."""
        self.error = metrics.get("oracle_error", self.error)
        reason = ""
        for name, measure in self._measures().items():
            if measure not in metrics:
                continue
            value = metrics[measure]
            before = self.smooth.get(measure, value)
            share = self.settings.smoothing
            smooth = self.smooth[measure] = share * before + (1 - share) * value
            self.first.setdefault(measure, value)
            limit = self._limit(name, measure)
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
        self.smooth.pop("oracle", None)
        self.first.pop("oracle", None)
        self.beyond.pop("oracle_drop", None)
        self.highest, self.error = float("-inf"), 0.0

    def _measures(self) -> dict[str, str]:
        """What each limit that is set looks at."""
        told = {"oracle_drop": "oracle", "kl": "kl", "entropy": "entropy", "length": "length_mean"}
        told["uncertainty"] = "rewards/model_uncertainty/mean"
        return {name: measure for name, measure in told.items() if getattr(self.settings, name)}

    def _limit(self, name: str, measure: str) -> float:
        """What the measure may not pass."""
        setting = getattr(self.settings, name)
        if name == "oracle_drop":
            self.highest = max(self.highest, self.smooth[measure])
            gained = self.highest - self.first[measure]
            return self.highest - max(setting * gained, self.error if gained < 2 * self.error else 0.0)
        return setting * self.first[measure] if name in ("length", "uncertainty") else setting

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Plain numbers."""
        oracle = {"highest": self.highest, "error": self.error} if self.highest > float("-inf") else {}
        beyond = {name: float(value) for name, value in self.beyond.items()}
        outside = {name: float(value) for name, value in self.outside.items()}
        return {"smooth": self.smooth, "first": self.first, "beyond": beyond, "outside": outside, "oracle": oracle}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """From `state_dict`."""
        self.smooth, self.first = dict(state["smooth"]), dict(state["first"])
        self.beyond = {name: int(value) for name, value in state["beyond"].items()}
        self.outside = {name: bool(value) for name, value in state["outside"].items()}
        self.highest = state["oracle"].get("highest", float("-inf"))
        self.error = state["oracle"].get("error", 0.0)


def _passed(name: str, value: float, limit: float) -> bool:
    return value < limit if name in ("oracle_drop", "entropy") else value > limit
