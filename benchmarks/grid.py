"""Experiments as grids of cells: each finished cell is one JSON line, and is not computed again."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Cell = Mapping[str, Any]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What earlier runs left; nothing when there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def fill(cells: Iterable[Cell], compute: Callable[[Cell], dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The lines of all cells, computed where the file has none yet; each is written as soon as it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    cells = list(cells)
    for number, cell in enumerate(cells, 1):
        known = next((line for line in read_lines(path) if line["cell"] == dict(cell)), None)
        if known is None:
            began = time.perf_counter()
            record = _apart(compute, cell)
            took = {"seconds": round(time.perf_counter() - began), **record.pop("machine")}
            known = {"cell": dict(cell), **took, "record": record}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known) + "\n")
            print(f"{number}/{len(cells)} {dict(cell)}: {known['seconds']} s", file=sys.stderr, flush=True)
        found.append(known)
    return found


def _machine() -> dict[str, Any]:
    """What models compute in here, on how many cores, and the processor's time, which no other program lengthens.

    Two programs of one thread fill two cores better than one of two.
    """
    import torch

    from assay.engine.load import computed_in

    return {
        "dtype": computed_in("auto"),
        "threads": torch.get_num_threads(),
        "core_seconds": round(sum(os.times()[:4])),
    }


def _apart(compute: Callable[[Cell], dict[str, Any]], cell: Cell) -> dict[str, Any]:
    """A cell in a process of its own: what the one before held of memory is gone."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: sender.send({**compute(cell), "machine": _machine()}))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise SystemExit(f"the cell {dict(cell)} failed; finished ones are kept") from None
    finally:
        process.join()
