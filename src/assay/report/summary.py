"""What a run's artifacts say in plain words: headline, verdict, warnings, and tables of settings and hashes."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from assay.records import Finding
from assay.report.run import RunDirectory, read_json, read_jsonl
from assay.report.text import interval, number, size
from assay.settings import InputError

HASHED_UP_TO = 2_000_000_000  # bytes; a larger file would hold the report up for many seconds
MANY_CUT = 0.2  # share of responses; above it the length limit, not the policy, decides where answers end


@dataclass(frozen=True, slots=True)
class Document:
    """audit.json or evaluation.json, read: its findings and the rest of its keys."""

    name: str
    findings: tuple[Finding, ...]
    rest: Mapping[str, Any]

    @property
    def num_failed(self) -> int:
        """Findings that missed their limit."""
        return sum(not finding.passed for finding in self.findings)


def read_document(path: Path) -> Document | None:
    """The file's findings; None when it is absent. InputError names the finding that cannot be read."""
    if not path.exists():
        return None
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("findings"), list):
        raise InputError(f"{path}: expected an object with a list 'findings'; run the stage that writes it again")
    findings = []
    for place, item in enumerate(data["findings"]):
        try:
            findings.append(_finding(item))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            message = f"{path}, findings[{place}]: not a finding ({error}); run the stage that writes it again"
            raise InputError(message) from None
    return Document(path.name, tuple(findings), {key: item for key, item in data.items() if key != "findings"})


def _finding(item: Mapping[str, Any]) -> Finding:
    """From JSON, where null stands for NaN. TypeError names a field that is not what it should be."""
    pair = item.get("interval")
    figures = [item.get("value"), *(pair or ())]
    if not all(figure is None or _is_number(figure) for figure in figures) or (pair is not None and len(pair) != 2):
        raise TypeError("value and the two ends of interval must be numbers or null")
    for key, kind in (("probe", str), ("n", int), ("limit", str), ("message", str), ("passed", bool)):
        if key in item and not isinstance(item[key], kind):
            raise TypeError(f"{key} must be of type {kind.__name__}")
    value, *ends = (math.nan if figure is None else float(figure) for figure in figures)
    return Finding.from_json({**item, "value": value, "interval": ends or None})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Headline:
    """One figure of the page's top: what it is, the figure itself, a sentence, and how it looks."""

    label: str
    figure: str
    sentence: str
    tone: Literal["good", "bad", "plain", "absent"] = "plain"


def gain(evaluation: Document | None) -> Headline:
    """What the policy gained over its base: the finding that speaks of gain, or of wins, or the first."""
    label = "Gain over the base model"
    if evaluation is None or not evaluation.findings:
        return Headline(label, "not run", "The policy was not evaluated against its base.", "absent")
    found = _speaking_of(evaluation.findings, "gain") or _speaking_of(evaluation.findings, "win")
    finding = found or evaluation.findings[0]
    wins = "gain" not in finding.probe and "win" in finding.probe
    even = 0.5 if wins else 0.0  # where the policy is as good as its base
    if finding.interval is None:
        sentence, tone = "No interval was given, so chance is not ruled out.", "plain"
    elif finding.interval[0] > even:
        sentence, tone = f"Better than the base: the whole interval lies above {number(even)}.", "good"
    elif finding.interval[1] < even:
        sentence, tone = f"Worse than the base: the whole interval lies below {number(even)}.", "bad"
    else:
        sentence, tone = f"No clear change: the interval includes {number(even)}.", "plain"
    if finding.interval is not None:
        sentence = f"95% interval {interval(finding.interval, signed=not wins)}, n = {number(finding.n)}. {sentence}"
    if found is None:
        label, sentence, tone = finding.probe, finding.message or f"n = {number(finding.n)}.", "plain"
    elif wins:
        label = "Win rate against the base model"
    return Headline(label, number(finding.value, signed=not wins), sentence, tone)


def _counted(num: int, word: str) -> str:
    return f"{num} {word}{'' if num == 1 else 's'}"


def _speaking_of(findings: Iterable[Finding], word: str) -> Finding | None:
    return next((finding for finding in findings if word in finding.probe.lower()), None)


def verdict(audit: Document | None) -> Headline:
    """Whether the reward may be optimised against."""
    label = "Gate on the reward"
    if audit is None:
        return Headline(label, "not run", "The reward was not audited.", "absent")
    passed = _gate(audit).get("passed")
    if not isinstance(passed, bool):
        return Headline(label, "no verdict", f"{audit.name} holds findings but no verdict.", "absent")
    num_limits = sum(bool(finding.limit) for finding in audit.findings)
    if passed:
        return Headline(
            label, "passed", f"The reward met its audit: {_counted(num_limits, 'limit')}, none missed.", "good"
        )
    sentence = f"The reward missed {audit.num_failed} of {_counted(num_limits, 'limit')}; optimising it is not advised."
    return Headline(label, "failed", sentence, "bad")


def reasons(audit: Document | None) -> list[str]:
    """Why the gate decided as it did, a sentence each."""
    given = _gate(audit).get("reasons") if audit else None
    return [str(reason) for reason in given] if isinstance(given, list) else []


def _gate(audit: Document) -> Mapping[str, Any]:
    """`passed` and `reasons`, which stand at the top of audit.json or under its `verdict`."""
    nested = audit.rest.get("verdict")
    return nested if isinstance(nested, Mapping) else audit.rest


def distance(rows: Sequence[Mapping[str, Any]], kept_step: int | None = None) -> Headline:
    """How far the policy went from its reference; the one of `kept_step`, where a limit ended the run and it was kept.

    What is logged at a step was sampled by the policy before it.
    """
    label = "Distance from the reference"
    measured = [row for row in rows if _is_number(row.get("kl"))]
    if not measured:
        return Headline(label, "not run", "No policy was trained here, or its KL was not logged.", "absent")
    last = measured[-1]
    if kept_step is not None:
        after = next((row for row in measured if row["step"] > kept_step), last)
        sentence = f"KL a response (k1) of the policy of step {kept_step}, which was kept when a limit ended the run."
        return Headline(label, f"{number(after['kl'])} nats", sentence)
    sentence = f"KL a response (k1) at step {number(last.get('step'))}, the last one logged."
    return Headline(label, f"{number(last['kl'])} nats", sentence)


def ended(run: RunDirectory) -> tuple[int | None, list[str]]:
    """The step of the policy that was kept where a limit ended its training, and a warning that says so."""
    notes = read_json(run.provenance) if run.provenance.exists() else {}
    told = notes.get("policy") if isinstance(notes, Mapping) else None
    if not isinstance(told, Mapping) or not isinstance(told.get("kept_step"), int):
        return None, []
    step = told["kept_step"]
    return step, [f"A limit ended the training, and the policy of step {step} was kept: {told.get('stopped')}."]


def warnings(
    run: RunDirectory, audit: Document | None, evaluation: Document | None, rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    optimised = run.policy.exists() or any("kl" in row for row in rows)
    if audit and _gate(audit).get("passed") is False and optimised:
        found.append("The gate was overridden: the policy was trained although the reward failed its audit.")
    if audit is None and optimised and run.reward.exists():
        found.append("The policy was trained against a reward that was not audited.")
    if evaluation and evaluation.num_failed:
        found.append(
            f"Limit missed by {evaluation.num_failed} of {_counted(len(evaluation.findings), 'evaluation figure')}."
        )
    found += _parted(rows)
    cut = [row["share_cut"] for row in rows if _is_number(row.get("share_cut"))]
    if cut and cut[-1] > MANY_CUT:
        found.append(f"At the last step {number(100 * cut[-1])}% of the responses were cut by the length limit.")
    if num_null := sum(value is None for row in rows for value in row.values()):
        found.append(f"{_counted(num_null, 'metric value')} not finite; the curves leave that out.")
    if run.metrics.exists() and read_jsonl(run.metrics)[1]:
        found.append("The last line of metrics.jsonl was cut off, so the run may have stopped early; it is left out.")
    for document in (audit, evaluation):
        if document and isinstance(document.rest.get("warnings"), list):
            found += [str(warning) for warning in document.rest["warnings"]]
    return found


def _parted(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Reward up while the oracle went down, on the same answers where that was looked at: overoptimisation."""
    told = "proxy" if any(_is_number(row.get("proxy")) for row in rows) else "reward"
    both = [row for row in rows if all(_is_number(row.get(key)) for key in (told, "oracle"))]
    if len(both) < 2:
        return []
    first, last = both[0], both[-1]
    if last[told] <= first[told] or last["oracle"] >= first["oracle"]:
        return []
    return [
        f"Between steps {number(first['step'])} and {number(last['step'])} the reward rose from "
        f"{number(first[told])} to {number(last[told])} while the oracle fell from "
        f"{number(first['oracle'])} to {number(last['oracle'])}: the policy may be exploiting the reward."
    ]


def flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, text) pairs, in their order; values are not rounded."""
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
            rows += flat({str(place): item for place, item in enumerate(value)}, f"{name}.")
        else:
            rows.append((name, _written(value)))
    return rows


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_written(item) for item in value) or "none"
    return "none" if value is None or value == {} or value == "" else str(value)


def grouped(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration by its top-level sections, those without section first."""
    single = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    groups = [("general", flat(single))] if single else []
    return groups + [(key, flat(value)) for key, value in config.items() if isinstance(value, Mapping) and value]


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of the run, as it was when the report was written."""

    name: str
    size: str
    sha256: str


def artifacts(run: RunDirectory) -> list[Artifact]:
    """Every file of the run with its SHA-256, the report, checkpoints and hidden files excepted."""
    found = []
    for path in sorted(run.path.rglob("*")):
        parts = path.relative_to(run.path).parts
        if not path.is_file() or path == run.report or "checkpoints" in parts or any(p.startswith(".") for p in parts):
            continue
        num_bytes = path.stat().st_size
        digest = _sha256(path) if num_bytes <= HASHED_UP_TO else f"not hashed: above {size(HASHED_UP_TO)}"
        found.append(Artifact("/".join(parts), size(num_bytes), digest))
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
