"""What an ensemble costs in training beside one model: four heads, four adapters. Time a token and peak memory.

Each row in a process of its own, all rows in turn, three times; medians of the ratios to the single model of its kind
(all weights for heads, low rank for adapters), kept in benchmarks/results/ensemble_cost.jsonl. Ten minutes on 2 cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peer"))

from measure import answer, answering, peak_memory_gb  # noqa: E402

from grid import read_lines  # noqa: E402

DATA = HERE.parent.parent / "shared" / "data" / "pairs_hh_test_human_plus_relabel.jsonl"
LORA = ["--lora.rank", "16"]
ROWS = {"one": [], "4 heads": ["--heads", "4"], "one adapter": LORA, "4 adapters": [*LORA, "--adapters", "4"]}
SINGLE = {"4 heads": "one", "4 adapters": "one adapter"}


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--num-pairs", type=int, default=48)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--results", type=Path, default=HERE / "results" / "ensemble_cost.jsonl")
    options.add_argument("--row", choices=ROWS, help="measure this row, here and now")
    return options.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train; seconds of all steps but each fit's first, which faults memory in, and the largest resident size."""
    from assay.cli import main as assay

    with tempfile.TemporaryDirectory() as run:
        told = ["--run", run, "--data.path", str(args.data), "--data.limit", str(args.num_pairs), "--held_out", "0"]
        if assay(["reward", *told, "--checkpoints.every", "0", "--verify", "false", *ROWS[args.row]]):
            raise SystemExit("assay reward failed")
        rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    steps = [row["seconds"] for row in rows if row["step"] > 1]
    return {"row": args.row, "step_seconds": statistics.median(steps), "steps": len(steps), "gb": peak_memory_gb()}


def main() -> None:
    args = parse()
    if args.row:
        with answering() as out:
            answer(out, measure(args))
        return
    for repeat in range(args.repeats):
        for row in ROWS:
            command = [sys.executable, __file__, "--row", row, "--data", args.data, "--num-pairs", str(args.num_pairs)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            line = {"repeat": repeat, **json.loads(done.stdout.splitlines()[-1])}
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{repeat + 1}/{args.repeats} {row}: {line['step_seconds']:.2f} s a step, {line['gb']:.2f} GB")
    lines = read_lines(args.results)[-args.repeats * len(ROWS) :]
    for row, single in SINGLE.items():
        for name, unit in (("step_seconds", "time of a step"), ("gb", "peak memory")):
            mine, other = ([line[name] for line in lines if line["row"] == which] for which in (row, single))
            ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
            print(
                f"{row} beside {single}: {unit} {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
