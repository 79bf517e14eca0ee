"""Find TRL's fastest settings: short runs over the grid, one JSONL line a cell, finished cells skipped."""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import fail, without_places

HERE = Path(__file__).parent
KEY = ("task", "batch", "order", "attention", "weights", "malloc", "num_pairs", "max_length", "clock", "data", "repeat")


def cells(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every combination asked for. Repeats lie outermost, so that drift of the machine meets all cells alike."""
    grid = itertools.product(range(args.repeats), args.task, args.batch, args.order, args.attention, args.weights)
    names = ("repeat", "task", "batch", "order", "attention", "weights")
    fixed = {name: getattr(args, name) for name in ("malloc", "num_pairs", "max_length", "clock")}
    fixed["data"] = args.data.name
    return [{**dict(zip(names, values, strict=True)), **fixed} for values in grid]


def command(cell: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """The run that fills a cell."""
    options = {name.replace("_", "-"): cell[name] for name in KEY if name not in ("task", "repeat")}
    options |= {"model": args.model, "data": args.data}
    script = HERE / f"{cell['task']}.py"
    return [args.peer_python, str(script), *(f"--{name}={value}" for name, value in options.items())]


def run(cell: dict[str, Any], words: list[str], timeout: float) -> dict[str, Any]:
    """The cell with the answer of the command that fills it, or with the last line of what went wrong."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"cell": cell, "failed": f"took longer than {timeout} s"}
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1][-300:]
        return {"cell": cell, "failed": f"exit code {done.returncode}: {re.sub(r'/[^ ]*/', '', said)}"}  # no places
    return {"cell": cell, "answer": without_places(json.loads(done.stdout.strip().splitlines()[-1]))}


def read_results(path: Path) -> list[dict[str, Any]]:
    """Lines of earlier runs; none when there is no file yet."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def quiet(line: dict[str, Any], max_other_cores: float) -> bool:
    """Whether the cell was measured, and without others taking more of the machine than allowed."""
    if "answer" not in line:
        return False
    return sum(line["answer"]["contention"].values()) <= max_other_cores


def finished(results: list[dict[str, Any]], args: argparse.Namespace) -> set[tuple[Any, ...]]:
    """Keys of the cells that need not run: measured in quiet, or failed and not to be retried."""
    return {
        key(line["cell"])
        for line in results
        if quiet(line, args.max_other_cores) or ("failed" in line and not args.retry)
    }


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in KEY)


def fastest(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each task, data and weights the cell of the highest median pairs/s over its runs."""
    speeds: dict[tuple[Any, ...], list[float]] = {}
    for line in results:
        speeds.setdefault(key(line["cell"])[:-1], []).append(line["answer"]["pairs_per_second"])
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for settings, runs in speeds.items():
        cell = dict(zip(KEY[:-1], settings, strict=True))
        row = {**cell, "pairs_per_second": statistics.median(runs), "runs": len(runs)}
        place = (cell["task"], cell["data"], cell["weights"])
        if place not in best or row["pairs_per_second"] > best[place]["pairs_per_second"]:
            best[place] = row
    return list(best.values())


def outcome(line: dict[str, Any], max_other_cores: float) -> str:
    """One line for the terminal."""
    if "failed" in line:
        return line["failed"]
    speed = f"{line['answer']['pairs_per_second']:.3f} pairs/s"
    return speed if quiet(line, max_other_cores) else f"{speed}, not counted: {line['answer']['contention']}"


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--peer-python", default=sys.executable)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--results", type=Path, default=HERE.parent / "results" / "screen.jsonl")
    options.add_argument("--task", nargs="+", choices=("reward", "dpo"), default=["reward", "dpo"])
    options.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4, 8])
    options.add_argument("--order", nargs="+", default=["random", "grouped"])
    options.add_argument("--attention", nargs="+", default=["eager", "sdpa"])
    options.add_argument("--weights", nargs="+", default=["autocast", "bf16"])
    options.add_argument("--malloc", choices=("default", "keep"), default="default")
    options.add_argument("--num-pairs", type=int, default=16)
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--max-length", type=int, default=1024)
    options.add_argument("--clock", choices=("all", "warm"), default="all")
    options.add_argument("--timeout", type=int, default=900, help="seconds a cell")
    options.add_argument("--max-other-cores", type=float, default=0.15, help="a cell above it is measured again")
    options.add_argument("--retry", action="store_true", help="run failed cells again")
    return options.parse_args()


def main() -> None:
    args = parse()
    if not os.access(args.peer_python, os.X_OK):
        fail(f"--peer-python {args.peer_python}: not an executable; make it with benchmarks/peer/setup.sh")
    results = read_results(args.results)
    skip = finished(results, args)
    todo = cells(args)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(todo, 1):
        if key(cell) in skip:
            continue
        line = run(cell, command(cell, args), args.timeout)
        results.append(line)
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{number}/{len(todo)} {cell}: {outcome(line, args.max_other_cores)}", file=sys.stderr, flush=True)
    wanted = {key(cell) for cell in todo}
    used = [line for line in results if key(line["cell"]) in wanted and quiet(line, args.max_other_cores)]
    measured = len({key(line["cell"]) for line in used})
    print(f"{measured} of {len(wanted)} cells measured in quiet; run again for the others", file=sys.stderr)
    for row in fastest(used):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
