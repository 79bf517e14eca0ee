"""Which findings a reward model must meet before a policy is optimised against it."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from assay.records import Finding
from assay.settings import InputError, Settings

UNIT_FIELDS = (
    "min_accuracy",
    "max_nan_rate",
    "max_tie_rate",
    "max_length_correlation",
    "min_accuracy_against_length",
    "max_length_overweight",
    "length_labels",
    "min_oracle_agreement",
)


@dataclass(frozen=True, kw_only=True)
class GateSettings(Settings):
    """The limits. Each is a share or a correlation in [0, 1]."""

    min_accuracy: float = 0.5
    """The lower end of the accuracy's interval must lie above this."""
    max_nan_rate: float = 0.0
    """Share of pairs, or of samples, with a missing reward."""
    max_tie_rate: float = 0.2
    """Share of pairs with two equal rewards."""
    max_length_correlation: float = 0.8
    """|Spearman| of reward and length differences above which the reward is suspected of following length."""
    min_accuracy_against_length: float = 0.35
    """Suspected too when its accuracy where the label goes against its length preference is surely below this."""
    max_length_overweight: float = 0.005
    """A suspect is refused when it surely loses more accuracy than this by weighing length more than the labels do."""
    length_labels: float = 0.98
    """Labels that follow length this often are about length: nothing in them speaks against a suspect."""
    min_oracle_agreement: float = 0.8
    """A suspect whose rank correlation with the oracle within prompts is surely above this is the truth itself."""

    def __post_init__(self) -> None:
        for name in UNIT_FIELDS:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"gate.{name} is {value}; give a number in [0, 1]")


DEFAULT = GateSettings()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a policy may be optimised against the reward, and one sentence for each reason why not."""

    passed: bool
    reasons: tuple[str, ...] = ()


def gate(findings: Iterable[Finding], settings: GateSettings = DEFAULT) -> Verdict:
    """Judge the findings: refused when any of them fails, or when no accuracy was measured."""
    reasons = tuple(finding.message for finding in judge(findings, settings) if not finding.passed)
    return Verdict(not reasons, reasons)


def judge(findings: Iterable[Finding], settings: GateSettings = DEFAULT) -> list[Finding]:
    """The findings with `limit`, `passed` and, where they fail, `message` filled in; a probe's own failures stay."""
    named = {finding.probe: finding for finding in findings}
    for judged in [
        _accuracy(named, settings),
        *_rates(named, settings),
        *_length(named, settings),
        *_oracle(named),
    ]:
        named[judged.probe] = judged
    return list(named.values())


def _accuracy(named: Mapping[str, Finding], settings: GateSettings) -> Finding:
    limit = f"interval above {settings.min_accuracy:g}"
    if "accuracy" not in named or named["accuracy"].n == 0:
        message = "no held-out accuracy was measured: score labelled pairs that the reward was not trained on"
        return Finding(probe="accuracy", value=math.nan, n=0, limit=limit, passed=False, message=message)
    found = named["accuracy"]
    low, high = _interval(found)
    if low > settings.min_accuracy:
        return dataclasses.replace(found, limit=limit)
    message = (
        f"the reward ranks answers the wrong way round: it prefers the chosen in {found.value:.1%} of {found.n} pairs"
        if high < min(0.5, settings.min_accuracy) and not ("rate/nan" in named and named["rate/nan"].value > 0)
        else f"the reward is not shown to be more than {settings.min_accuracy:.0%} accurate: {found.value:.1%} of "
        f"{found.n} pairs, 95% interval {low:.1%} to {high:.1%}"
    )
    return dataclasses.replace(found, limit=limit, passed=False, message=message)


def _rates(named: Mapping[str, Finding], settings: GateSettings) -> list[Finding]:
    rules = {
        "rate/nan": (settings.max_nan_rate, "the reward is missing (NaN or infinite) in {:.1%} of {} pairs"),
        "rate/nan_samples": (settings.max_nan_rate, "the reward is missing (NaN or infinite) in {:.1%} of {} samples"),
        "rate/tie": (settings.max_tie_rate, "the reward cannot tell answers apart: equal in {:.1%} of {} pairs"),
    }
    judged = []
    for probe, (most, sentence) in rules.items():
        if probe in named:
            found = dataclasses.replace(named[probe], limit=f"<= {most:g}")
            if not found.value <= most and found.n:
                message = f"{sentence.format(found.value, found.n)}; at most {most:.1%} is allowed"
                found = dataclasses.replace(found, passed=False, message=message)
            judged.append(found)
    return judged


def _length(named: Mapping[str, Finding], settings: GateSettings) -> list[Finding]:
    """One decision, kept on `length/spearman`: suspected of following length, and not cleared by what labels say."""
    needed = ("length/spearman", "length/accuracy_longer", "length/accuracy_shorter")
    if any(probe not in named for probe in needed):
        return []
    found, longer, shorter = (named[probe] for probe in needed)
    found = dataclasses.replace(found, limit=f"|value| <= {settings.max_length_correlation:g}, or as the labels do")
    along, against, way = (shorter, longer, "shorter") if found.value < 0 else (longer, shorter, "longer")
    turned_by_length = (
        _interval(against)[1] < settings.min_accuracy_against_length and _interval(along)[0] > settings.min_accuracy
    )
    if not (abs(found.value) > settings.max_length_correlation or turned_by_length):
        return [found]
    cleared = _cleared(named, along, against, settings)
    if cleared:
        return [dataclasses.replace(found, message=f"the reward prefers the {way} answer, but {cleared}")]
    other = "shorter" if way == "longer" else "longer"
    message = (
        f"the reward follows length: its rank correlation with length is {found.value:.2f}, and it is right in "
        f"{against.value:.0%} of the {against.n} pairs whose chosen answer is the {other}; {_charge(named)}"
        f"a policy trained on it would learn to write {way} answers"
    )
    return [dataclasses.replace(found, passed=False, message=message)]


def _charge(named: Mapping[str, Finding]) -> str:
    """Which of the two ways to be cleared by the labels it failed."""
    if "length/beyond" not in named or not math.isfinite(named["length/beyond"].value):
        return ""
    if not _interval(named["length/beyond"])[0] > 0:
        return "at equal length it is not shown to predict the labels; "
    return f"without its taste for length it would be {named['length/overweight'].value:.1%} more accurate; "


def _cleared(named: Mapping[str, Finding], along: Finding, against: Finding, settings: GateSettings) -> str:
    """Why a reward that leans on length may do so, or nothing."""
    if along.n >= settings.length_labels * (along.n + against.n):
        return f"so do {along.n} of the {along.n + against.n} labels: these data cannot tell quality from length"
    if "oracle/agreement" in named and _interval(named["oracle/agreement"])[0] >= settings.min_oracle_agreement:
        return f"so does the oracle: they agree at rank correlation {named['oracle/agreement'].value:.2f}"
    if _interval(against)[0] > settings.min_accuracy:
        return f"it is right in {against.value:.0%} of the pairs whose label goes the other way"
    beyond, overweight = named.get("length/beyond"), named.get("length/overweight")
    if beyond is None or overweight is None:
        return ""
    if _interval(beyond)[0] > 0 and _interval(overweight)[0] <= settings.max_length_overweight:
        return "at equal length it still predicts the labels, and it weighs length no more than they do"
    return ""


def _oracle(named: Mapping[str, Finding]) -> list[Finding]:
    judged = []
    for probe, found in named.items():
        if probe.startswith("best_of_n/oracle_gain/"):
            found = dataclasses.replace(found, limit="not surely below 0")
            if _interval(found)[1] < 0:
                message = (
                    f"optimising the reward harms the truth: the best of {probe.rpartition('/')[2]} by reward is worth "
                    f"{-found.value:.3g} less by the oracle than a random sample"
                )
                found = dataclasses.replace(found, passed=False, message=message)
            judged.append(found)
    return judged


def _interval(finding: Finding) -> tuple[float, float]:
    return finding.interval or (math.nan, math.nan)
