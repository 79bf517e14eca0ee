"""What a stage tells while it works: bars with rates on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from assay.report.text import visible

LINES_APART = 10.0  # seconds between lines where output is no terminal

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One message, as it is; control characters of model text made visible."""
    console.print("\n".join(visible(line) for line in text.splitlines()), markup=False)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys, aligned; folded to the window on a terminal, one line each elsewhere."""
    if not rows:
        return
    texts = [[visible(str(value)) for value in row.values()] for row in rows]
    if not console.is_terminal:
        lines = [list(rows[0]), *texts]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        say(title)
        for line in lines:
            say("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        return
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in rows[0]:
        made.add_column(name, overflow="fold")
    for row in texts:
        made.add_row(*row)
    console.print(made)


class Bar:
    """Steps done, a few figures, rate and time left."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self.title, self.total, self.start = title, total, start
        self.began = self.spoke = time.monotonic()
        self.rich: Progress | None = None
        if console.is_terminal and sys.stdout.isatty():
            self.rich = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[figures]}"), console=console,
            )  # fmt: skip
            self.task = self.rich.add_task(title, total=total, figures="")

    def update(self, done: int, figures: Mapping[str, float]) -> None:
        """`done` of the total, with the figures to show."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self.rich is not None:
            self.rich.update(self.task, completed=done, figures=shown)
            return
        now = time.monotonic()
        if now - self.spoke >= LINES_APART or done == self.total:
            self.spoke = now
            rate = (done - self.start) / max(now - self.began, 1e-9)
            left = (self.total - done) / rate if rate else 0.0
            say(f"{self.title} {done}/{self.total}  {shown}  {rate:.2f} steps/s, {left:.0f} s left")


@contextmanager
def bar(title: str, total: int, start: int = 0) -> Iterator[Bar]:
    """A bar for the duration of a block; what a resumed run did before, `start`, does not count in the rate."""
    made = Bar(title, total, start)
    if made.rich is None:
        yield made
    else:
        with made.rich:
            yield made
