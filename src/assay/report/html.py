"""The report: one offline HTML file without scripts, in which text that models wrote stays inert.

Every value that the template prints is escaped by Jinja2 and passes `visible`; nothing is fetched, and the page's
content security policy forbids scripts and requests besides.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from assay.records import Finding
from assay.report import curves, summary
from assay.report.run import RunDirectory, Sample, read_json, write_text
from assay.report.text import MISSING, interval, number, shortened, visible
from assay.settings import InputError

NUM_SAMPLES = 12  # shown side by side; the rest stay in samples.jsonl, and are counted
NUM_EXAMPLES = 5  # of each finding
LONGEST_TEXT = 4000  # characters of one prompt or response


def write_report(run: RunDirectory) -> Path:
    """Write `report.html` from what the run directory holds; a section without its artifact says so.

    The same artifacts give the same bytes. InputError when there is no such folder or an artifact cannot be read.
    """
    if not run.path.is_dir():
        raise InputError(f"{run.path}: no such run directory; give the folder that holds metrics.jsonl or audit.json")
    return write_text(run.report, _page().render(_contents(run)))


def _page() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, interval=interval)
    return environment.get_template("template.html.j2")


def _contents(run: RunDirectory) -> dict[str, Any]:
    """What the template prints, section by section."""
    audit, evaluation = summary.read_document(run.audit), summary.read_document(run.evaluation)
    rows = run.read_metrics()
    kept_step, ended = summary.ended(run)
    large, small, num_left_out = curves.metric_figures(rows)
    samples = run.read_samples()
    best_of_n = curves.best_of_n_curve(audit.findings) or audit.rest.get("best_of_n") if audit else None
    calibration = audit.rest.get("calibration") if audit else None
    return {
        "name": run.path.resolve().name,
        "headlines": [summary.gain(evaluation), summary.verdict(audit), summary.distance(rows, kept_step)],
        "reasons": summary.reasons(audit),
        "warnings": [*ended, *summary.warnings(run, audit, evaluation, rows)],
        "config": summary.grouped(run.read_config()) if run.config.exists() else None,
        "stages": _stages(run),
        "audit": _audit_tables(audit),
        "basis": _basis(audit),
        "evaluation": _finding_rows(evaluation),
        "settings": _mapping(evaluation, "settings"),
        "num_rows": len(rows),
        "large": large,
        "small": small,
        "num_left_out": num_left_out,
        "best_of_n": curves.best_of_n_figure(best_of_n) if best_of_n else None,
        "calibration": curves.calibration_figure(calibration) if calibration else None,
        "samples": [_sample(sample) for sample in samples[:NUM_SAMPLES]],
        "num_samples": len(samples),
        "artifacts": summary.artifacts(run),
    }


def _basis(audit: summary.Document | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the audit rests on."""
    titles = {"What was counted": "counts", "The gate's limits": "settings"}
    groups = [(title, _mapping(audit, key)) for title, key in titles.items()]
    return [(title, pairs) for title, pairs in groups if pairs]


def _mapping(document: summary.Document | None, key: str) -> list[tuple[str, str]]:
    value = document.rest.get(key) if document else None
    return summary.flat(value) if isinstance(value, Mapping) else []


def _finding_rows(document: summary.Document | None) -> list[dict[str, Any]] | None:
    return None if document is None else [_finding_row(finding) for finding in document.findings]


def _audit_tables(audit: summary.Document | None) -> dict[str, list[dict[str, Any]]] | None:
    """What the gate judged, what is reported only, and the single points of the best-of-n curve."""
    if audit is None:
        return None
    tables: dict[str, list[dict[str, Any]]] = {"judged": [], "reported": [], "points": []}
    for finding in audit.findings:
        judged = bool(finding.limit) or not finding.passed
        kind = "judged" if judged else "points" if curves.is_best_of_n(finding) else "reported"
        tables[kind].append(_finding_row(finding))
    return tables


def _finding_row(finding: Finding) -> dict[str, Any]:
    shown = finding.examples[:NUM_EXAMPLES]
    return {
        "finding": finding,
        "limit": finding.limit.replace(">=", "≥").replace("<=", "≤") or MISSING,
        "result": "reported" if not finding.limit and finding.passed else "passed" if finding.passed else "failed",
        "examples": [_pairs(example) for example in shown],
        "num_more": len(finding.examples) - len(shown),
    }


def _pairs(example: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An example's fields; figures rounded for reading, texts cut at a length that is said."""
    pairs = []
    for key, value in example.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            pairs.append((key, number(value)))
        else:
            pairs += [(name, _cut(text)) for name, text in summary.flat({key: value})]
    return pairs


def _cut(text: str) -> str:
    kept, num_more = shortened(text, LONGEST_TEXT)
    return f"{kept}\n[{number(num_more)} more characters in the file]" if num_more else kept


def _sample(sample: Sample) -> dict[str, Any]:
    sides: Sequence[tuple[str, str, float | None, float | None]] = (
        ("Before", sample.base, sample.base_reward, sample.base_oracle),
        ("After", sample.policy, sample.policy_reward, sample.policy_oracle),
    )
    return {
        "prompt": _cut(sample.prompt),
        "sides": [
            {"title": title, "text": _cut(text), "reward": reward, "oracle": oracle}
            for title, text, reward, oracle in sides
        ],
    }


def _stages(run: RunDirectory) -> list[tuple[str, list[tuple[str, str]]]] | None:
    """What each stage recorded of itself, an environment that stages share once; None when nothing was."""
    if not run.provenance.exists():
        return None
    data = read_json(run.provenance)
    if not isinstance(data, dict) or not all(isinstance(facts, dict) for facts in data.values()):
        raise InputError(f"{run.provenance}: expected an object of stages; remove it or run the stages again")
    groups, environments = [], {}
    for stage, facts in data.items():
        groups.append((stage, summary.flat({key: value for key, value in facts.items() if key != "environment"})))
        if isinstance(facts.get("environment"), dict):
            environments.setdefault(tuple(summary.flat(facts["environment"])), []).append(stage)
    groups += [(f"environment of {', '.join(stages)}", list(rows)) for rows, stages in environments.items()]
    return groups
