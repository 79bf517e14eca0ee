"""Which figures a run's metrics and audit give: whatever is there is drawn, what is absent is left out."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from assay.records import Finding
from assay.report.plots import BLUE, GREEN, ORANGE, Figure, Line, Panel, line_plot, reliability_diagram
from assay.settings import InputError

Row = Mapping[str, Any]

REWARD = "reward (the reward model's units)"
ORACLE = "oracle (held-out judge)"
_POLICY = (("reward", REWARD, BLUE), ("oracle", ORACLE, ORANGE))

# metric -> title of its own small figure, in the order of the page
SMALL: Mapping[str, str] = {
    "loss": "loss (nats)",
    "accuracy": "accuracy (share of pairs)",
    "margin": "margin (chosen minus rejected)",
    "entropy": "entropy (nats a token)",
    "length_mean": "response length (tokens)",
    "share_cut": "responses cut by length (share)",
    "grad_norm": "gradient norm",
    "clip_fraction": "clipped tokens (share)",
    "learning_rate": "learning rate",
}
NUM_SMALL = 18  # more would bury the ones that matter; the rest stay in the file, and are counted
_NOT_DRAWN = {"step", "stage", "reward", "oracle", "oracle_error", "kl", "kl_k3"}


def metric_figures(rows: Sequence[Row], source: str = "metrics.jsonl") -> tuple[list[Figure], list[Figure], int]:
    """The large figures, the small ones, and how many further columns were not drawn; stages one after another."""
    large: list[Figure] = []
    small: list[Figure] = []
    num_left_out = 0
    for stage in dict.fromkeys(str(row.get("stage", "")) for row in rows):
        own = [row for row in rows if str(row.get("stage", "")) == stage]
        large += _large(own, stage, source)
        columns = _small_columns(own)
        small += _distance(own, stage, source)
        small += [_small(own, key, stage, source) for key in columns[:NUM_SMALL]]
        num_left_out += len(columns[NUM_SMALL:])
    return large, small, num_left_out


def is_best_of_n(finding: Finding) -> bool:
    """Whether the finding is one point of the best-of-n curve, e.g. `best_of_n/oracle/16`."""
    return re.fullmatch(r"best_of_n/\w+/[1-9]\d*", finding.probe) is not None


def best_of_n_curve(findings: Iterable[Finding]) -> dict[str, list[float]]:
    """The curve that the findings `best_of_n/<quantity>/<n>` make up, by n; empty without any.

    `n` and for each quantity its values and the ends of their intervals, NaN where one is missing.
    """
    points: dict[tuple[str, int], Finding] = {}
    for finding in filter(is_best_of_n, findings):
        _, quantity, n = finding.probe.split("/")
        points[quantity, int(n)] = finding
    sizes = sorted({n for _, n in points})
    curve: dict[str, list[float]] = {"n": [float(n) for n in sizes]} if sizes else {}
    for quantity in dict.fromkeys(quantity for quantity, _ in points):
        column = [points.get((quantity, n)) for n in sizes]
        ends = [point.interval if point and point.interval else (math.nan, math.nan) for point in column]
        curve[quantity] = [point.value if point else math.nan for point in column]
        curve[f"{quantity}_low"], curve[f"{quantity}_high"] = ([end[place] for end in ends] for place in (0, 1))
    return curve


def best_of_n_figure(curve: Mapping[str, Any], source: str = "audit.json") -> Figure:
    """Mean reward, oracle and length of the response that the reward ranks first among n, with their bands."""
    if "n" not in curve:
        raise InputError(f"{source}, best_of_n: no list 'n'; run `assay audit` again")
    panels = []
    for key, title, colour in (*_POLICY, ("length", "length (tokens)", GREEN)):
        if key not in curve:
            continue
        low, high = (_floats(curve[f"{key}_{end}"]) if f"{key}_{end}" in curve else None for end in ("low", "high"))
        try:
            line = Line(key, _floats(curve["n"]), _floats(curve[key]), colour, low, high)
        except ValueError as error:
            raise InputError(f"{source}, best_of_n: {error}") from None
        panels.append(Panel(title, [line]))
    if not panels:
        raise InputError(f"{source}, best_of_n: no list 'reward', 'oracle' or 'length'; run `assay audit` again")
    caption = f"What picking the highest reward among n responses buys; bands are 95% intervals. From {source}."
    return line_plot(
        panels, name="best-of-n", x_label="n, responses to choose from (doubling)", caption=caption, doubling=True
    )


def calibration_figure(bins: Mapping[str, Any], source: str = "audit.json") -> Figure:
    """The reliability diagram of the audit's calibration bins."""
    for key in ("confidence", "accuracy", "count"):
        if key not in bins:
            raise InputError(f"{source}, calibration: no list {key!r}; run `assay audit` again")
    lengths = {key: len(values) for key, values in bins.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"{source}, calibration: lists of different length {lengths}; run `assay audit` again")
    caption = f"How often the label agreed, by the model's confidence; area shows the count. From {source}."
    return reliability_diagram(
        {key: _floats(values) for key, values in bins.items()}, name="reliability", caption=caption
    )


def root_kl(kl: float | None) -> float:
    """√KL, the distance that overoptimisation curves are drawn against; a negative estimate counts as 0.

    Source: Gao et al. 2022, arXiv:2210.10760, section 3.1.
    """
    return math.nan if kl is None else math.sqrt(max(kl, 0.0))


def _large(rows: Sequence[Row], stage: str, source: str) -> list[Figure]:
    figures = []
    prefix = f"{stage}-" if stage else ""
    origin = f"From {source}{f', stage {stage}' if stage else ''}."
    against_step = [_panel(rows, key, title, colour) for key, title, colour in _POLICY]
    if panels := [panel for panel in against_step if panel]:
        caption = f"What was optimised{' and what was meant' if len(panels) == 2 else ''}, by optimiser step. {origin}"
        figures.append(line_plot(panels, name=f"{prefix}reward-step", x_label="step", caption=caption))
        if _has(rows, "kl"):
            panels = [panel for key, title, colour in _POLICY if (panel := _panel(rows, key, title, colour, x="kl"))]
            if panels:
                caption = f"The same by distance from the reference; KL is k1, summed over a response. {origin}"
                figures.append(
                    line_plot(
                        panels, name=f"{prefix}reward-kl", x_label="√KL to the reference (√nats)", caption=caption
                    )
                )
    return figures


def _distance(rows: Sequence[Row], stage: str, source: str) -> list[Figure]:
    drawn = (("kl", "k1", BLUE), ("kl_k3", "k3", GREEN))
    lines = [line for key, label, colour in drawn if (line := _line(rows, key, label, colour))]
    if not lines:
        return []
    title = "KL (nats a response)" if len(lines) > 1 else f"KL, {lines[0].label} (nats a response)"
    caption = f"kl is k1, unbiased, and may dip below 0; kl_k3 may not; {source}"
    return [line_plot([Panel(title, lines)], name=f"{stage}-kl", x_label="step", caption=caption, shape="small")]


def _small_columns(rows: Sequence[Row]) -> list[str]:
    present = list(dict.fromkeys(key for row in rows for key in row))
    known = [key for key in SMALL if key in present]
    others = [key for key in present if key not in SMALL and key not in _NOT_DRAWN]
    return [key for key in known + others if _has(rows, key)]


def _small(rows: Sequence[Row], key: str, stage: str, source: str) -> Figure:
    line = _line(rows, key, key, BLUE)
    assert line is not None  # _small_columns keeps columns that have values
    caption = f"{key}{f' ({stage})' if stage else ''}, {source}"
    title = SMALL.get(key, key[:40])
    return line_plot([Panel(title, [line])], name=f"{stage}-{key}", x_label="step", caption=caption, shape="small")


def _panel(rows: Sequence[Row], key: str, title: str, colour: str, x: str = "step") -> Panel | None:
    line = _line(rows, key, key, colour, x=x)
    return Panel(title, [line]) if line else None


def _line(rows: Sequence[Row], key: str, label: str, colour: str, x: str = "step") -> Line | None:
    """The metric over the rows that name it and x; None when no value is a number."""
    own = [row for row in rows if key in row and x in row]
    y = _floats(row[key] for row in own)
    if not any(math.isfinite(value) for value in y):
        return None
    places = _floats(row[x] for row in own)
    return Line(label, [root_kl(value) for value in places] if x == "kl" else places, y, colour)


def _has(rows: Sequence[Row], key: str) -> bool:
    return any(_is_number(row.get(key)) for row in rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _floats(values: Iterable[Any]) -> list[float]:
    """NaN for what is not a number."""
    return [float(value) if _is_number(value) else math.nan for value in values]
