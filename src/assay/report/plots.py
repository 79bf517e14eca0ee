"""Figures as SVG text with stable bytes: no dates, no scripts, nothing fetched; light, and recoloured for the dark."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any, Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from assay.report.text import number

INK, MUTED, GRID = "#1f2a37", "#5f6b7a", "#e3e7ed"
BLUE, ORANGE, GREEN = "#0072b2", "#b84f00", "#00785a"  # told apart under the common colour blindnesses
_DARK = {INK: "#e6e9ef", MUTED: "#9fabba", GRID: "#2c3542", BLUE: "#56b4e9", ORANGE: "#e69f00", GREEN: "#2bc09a"}

_STYLE = {
    "svg.hashsalt": "assay",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",  # the reader's machine needs no font
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "axes.formatter.useoffset": False,
}

# Width in inches, and height for one, two and three panels; at these a figure's text is as large as the page's.
_SIZES = {"medium": (4.6, (2.8, 3.5, 4.9)), "small": (3.0, (2.0, 3.0, 4.0)), "square": (3.5, (3.5,))}
_SMOOTHED_ABOVE = 60  # points; a longer line is drawn faint under its running mean


Shape = Literal["medium", "small", "square"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn figure: its SVG, what it shows in words, and the file that its numbers came from."""

    name: str
    svg: str
    alt: str
    caption: str
    shape: Shape = "medium"

    @property
    def light(self) -> str:
        """A data URI for light pages and for paper."""
        return _data_uri(self.svg)

    @property
    def dark(self) -> str:
        """A data URI for dark pages: the same drawing in lighter colours."""
        return _data_uri(re.sub("|".join(_DARK), lambda found: _DARK[found.group()], self.svg))


@dataclass(frozen=True, slots=True)
class Line:
    """One line, `x` and `y` of equal length (NaN leaves a gap), with an optional band from `low` to `high`."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = BLUE
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    kind: Literal["solid", "dashed"] = "solid"

    def __post_init__(self) -> None:
        lengths = {len(values) for values in (self.x, self.y, self.low, self.high) if values is not None}
        if len(lengths) != 1:
            raise ValueError(f"line {self.label!r}: x, y and the band must be of one length; got {sorted(lengths)}")


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one pair of axes; the title says the quantity and its unit."""

    title: str
    lines: Sequence[Line]


def line_plot(
    panels: Sequence[Panel],
    *,
    name: str,
    x_label: str,
    caption: str,
    shape: Shape = "medium",
    doubling: bool = False,
) -> Figure:
    """Panels stacked over one x axis. Lines are named where they end; `doubling`: x in powers of two."""
    with matplotlib.style.context(["default", _STYLE]):
        canvas = Canvas(figsize=_size(shape, len(panels)), layout="constrained")
        grid: Any = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            _draw_panel(axes, panel)
        last: Axes = grid[-1, 0]
        last.set_xlabel(x_label)
        points = [x for panel in panels for line in panel.lines for x in line.x]
        if doubling:
            _double(last, points)
        elif x_label.startswith("step"):
            last.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        svg = _svg(canvas)
    lines = [line for panel in panels for line in panel.lines]
    alt = f"Line chart against {x_label}. " + " ".join(_in_words(line) for line in lines)
    return Figure(name, svg, alt, caption, shape)


def reliability_diagram(bins: Mapping[str, Sequence[float]], *, name: str, caption: str) -> Figure:
    """Accuracy against confidence, one mark a bin, area in proportion to `count`; on the diagonal: calibrated.

    `bins` holds `confidence`, `accuracy`, `count`, and perhaps `low` and `high`, all of one length.
    """
    confidence, accuracy, count = (np.asarray(bins[key], float) for key in ("confidence", "accuracy", "count"))
    with matplotlib.style.context(["default", _STYLE]):
        canvas = Canvas(figsize=_size("square", 1), layout="constrained")
        axes: Any = canvas.subplots()
        low, high = (np.asarray(bins.get(end, accuracy), float) for end in ("low", "high"))
        start = 0.5 if min([*confidence, *accuracy], default=0) >= 0.5 else 0.0
        floor = min([start, *(low[np.isfinite(low)] - 0.02)])
        axes.plot([start, 1], [start, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate("calibrated", (1.03, 1), color=MUTED, va="center", annotation_clip=False)
        axes.vlines(confidence, low, high, color=BLUE, linewidth=1.2)
        axes.scatter(confidence, accuracy, s=70 * count / max(count.max(initial=0), 1), color=BLUE, zorder=3)
        axes.set(xlim=(start - 0.02, 1.02), ylim=(floor, 1.02), aspect="equal")
        axes.set_xlabel("confidence (predicted probability)")
        axes.set_title("accuracy (share the label agreed with)")
        svg = _svg(canvas)
    rows = zip(confidence, accuracy, count, strict=True)
    words = "; ".join(f"at confidence {number(c)} accuracy {number(a)} (n = {number(n)})" for c, a, n in rows)
    return Figure(name, svg, f"Reliability diagram: {words}.", caption, "square")


def smooth(values: Sequence[float] | np.ndarray, width: int) -> np.ndarray:
    """The centred running mean over `width` points, an odd number; NaN is left out, ends use what there is."""
    array = np.asarray(values, float)
    known = np.isfinite(array)
    window = np.ones(width)
    total = np.convolve(np.where(known, array, 0), window, mode="full")[width // 2 :][: len(array)]
    num = np.convolve(known.astype(float), window, mode="full")[width // 2 :][: len(array)]
    return np.where(known, total / np.maximum(num, 1), np.nan)


def _size(shape: Shape, num_panels: int) -> tuple[float, float]:
    width, heights = _SIZES[shape]
    return width, heights[min(num_panels, len(heights)) - 1]


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        if line.low is not None and line.high is not None:
            low, high = np.asarray(line.low, float), np.asarray(line.high, float)
            axes.fill_between(x, low, high, color=line.colour, alpha=0.16, linewidth=0)
        style: Any = "-" if line.kind == "solid" else (0, (4, 2))
        if len(y) > _SMOOTHED_ABOVE:
            width = 2 * (len(y) // 40) + 1
            if np.any(np.diff(x[np.isfinite(x)]) < 0):  # a noisy x: joined, the points would only scribble
                axes.plot(x, y, color=line.colour, alpha=0.3, linestyle="", marker="o", markersize=2)
                x = smooth(x, width)
            else:
                axes.plot(x, y, color=line.colour, alpha=0.28, linewidth=0.9)
            axes.plot(x, smooth(y, width), color=line.colour, linestyle=style)
        else:
            mark = "o" if len(y) <= 25 else ""
            axes.plot(x, y, color=line.colour, linestyle=style, marker=mark, markersize=3.5)
    axes.set_title(panel.title, color=panel.lines[0].colour if len(panel.lines) == 1 else INK, parse_math=False)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.margins(x=0.03, y=0.12)
    if len(panel.lines) > 1:
        _name_ends(axes, panel.lines)


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's name beside its last point, moved apart where names would overlap."""
    bottom, top = axes.get_ylim()
    ends = []
    for line in lines:
        y = np.asarray(line.y, float)
        if np.isfinite(y).any():
            last = int(np.flatnonzero(np.isfinite(y))[-1])
            ends.append([(y[last] - bottom) / (top - bottom), line])
    ends.sort(key=lambda end: end[0])
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = 11 / height  # a line of text, as a share of the panel
    for before, after in pairwise(ends):
        after[0] = max(after[0], before[0] + gap)
    for place, line in ends:
        axes.annotate(
            line.label, (1.01, place), xycoords="axes fraction", color=line.colour, va="center", weight="bold"
        )


def _double(axes: Axes, points: Sequence[float]) -> None:
    """A base-2 axis whose ticks are plain numbers."""
    axes.set_xscale("log", base=2)
    ticks = sorted({2.0 ** round(math.log2(x)) for x in points if x > 0})
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: max(1, math.ceil(len(ticks) / 9))]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())


def _in_words(line: Line) -> str:
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return f"{line.label}: no values."
    ends = [points[0], points[-1], max(points, key=lambda point: point[1])]
    first, last, highest = (f"{number(y)} at {number(x)}" for x, y in ends)
    return f"{line.label}: {first}, {last}; highest {highest}."


def _svg(canvas: Canvas) -> str:
    """The drawing as SVG without prolog, document type or metadata: they carry dates and addresses."""
    text = StringIO()
    FigureCanvasSVG(canvas).print_svg(text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    return re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
