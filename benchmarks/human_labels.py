"""Held-out accuracy of a reward model on human labels, beside TRL's with the same pairs, epochs and learning rate.

One line a side is appended to benchmarks/results/human_labels.jsonl; a side that is there already is not run again.
About half an hour for the project's side and an hour for TRL's on 2 cores.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from bench import DEFAULT_PAIRS, last_line, without_places  # noqa: E402
from grid import fill  # noqa: E402

SCHEDULE = {"lr": "3e-5", "epochs": "1"}


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peer-python", default=str(HERE.parent / ".venv-peer" / "bin" / "python"))
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--data", type=Path, default=DEFAULT_PAIRS)
    options.add_argument("--held-out", type=int, default=500, help="prompts kept for testing")
    options.add_argument("--run", type=Path, default=HERE.parent / "runs" / "accuracy")
    options.add_argument("--results", type=Path, default=HERE / "results" / "human_labels.jsonl")
    options.add_argument("--sides", nargs="+", default=["assay", "peer"], choices=("assay", "peer"))
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


def split_files(args: argparse.Namespace) -> tuple[Path, Path]:
    """The rows that `assay reward` trains on and those it holds out, as the peer reads them."""
    from assay.feedback.read import read_comparisons
    from assay.feedback.split import split_by_prompt

    comparisons = read_comparisons(str(args.data)).records
    _, held_out = split_by_prompt(comparisons, held_out=args.held_out, seed=args.seed)
    tested = {comparison.id for comparison in held_out}
    paths = args.run / "train.jsonl", args.run / "test.jsonl"
    args.run.mkdir(parents=True, exist_ok=True)
    lines = [line for line in args.data.read_text(encoding="utf-8").splitlines() if line.strip()]
    parts: tuple[list[str], list[str]] = ([], [])
    for comparison, line in zip(comparisons, lines, strict=True):
        parts[comparison.id in tested].append(line)
    for path, part in zip(paths, parts, strict=True):
        path.write_text("\n".join(part) + "\n", encoding="utf-8")
    return paths


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """`assay reward`, and what it left in its run directory."""
    began = time.perf_counter()
    words = ["--run", args.run / "assay", "--model", args.model, "--data.path", args.data, "--held_out", args.held_out]
    words += ["--optimiser.lr", SCHEDULE["lr"], "--epochs", SCHEDULE["epochs"], "--optimiser.warmup", 0]
    words += ["--seed", args.seed, "--likelihood.centring_coef", 0]
    command = [sys.executable, "-m", "assay", "reward", *words]
    subprocess.run([str(word) for word in command], check=True)
    found = json.loads((args.run / "assay" / "held_out.json").read_text())
    return {"side": "assay", "seconds_in_all": round(time.perf_counter() - began), "held_out": found}


def peer(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """TRL's RewardTrainer with fp32 weights, then its margins on the held-out pairs."""
    train, test = split_files(args)
    began = time.perf_counter()
    words = ["--model", model, "--data", train, "--held-out", test, "--lr", SCHEDULE["lr"], "--seed", args.seed]
    words += ["--epochs", SCHEDULE["epochs"], "--max-length", 2048]
    record = last_line([args.peer_python, HERE / "peer" / "accuracy.py", *words])
    record["losses"] = record["losses"][::20]
    del record["step_seconds"]
    return {**without_places(record), "seconds_in_all": round(time.perf_counter() - began)}


def with_interval(record: dict[str, Any]) -> tuple[float, float, float]:
    """Accuracy and its 95% Wilson interval."""
    if "held_out" in record:
        found = record["held_out"]["held-out accuracy"]
        return found["value"], *found["interval"]
    from assay.audit.statistics import wilson

    accuracy, n = record["accuracy"], record["num_held_out"]
    return accuracy, *wilson(accuracy * n, n)


def main() -> None:
    args = parse()
    from assay.engine.catalog import resolve_model

    model = str(resolve_model(args.model).path)
    key = {"data": args.data.name, "held_out": args.held_out, "seed": args.seed, "model": args.model, **SCHEDULE}
    cells = [{"side": side, **key} for side in args.sides]
    lines = fill(cells, lambda cell: ours(args) if cell["side"] == "assay" else peer(args, model), args.results)
    for side, known in zip(args.sides, lines, strict=True):
        accuracy, low, high = with_interval(known["record"])
        print(f"{side:<6} accuracy {accuracy:.3f} ({low:.3f} to {high:.3f})")
        if side == "assay":
            longer = known["record"]["held_out"]["always the longer"]
            print(f"always the longer answer: {longer['value']:.3f} ({longer['interval'][0]:.3f} to "
                  f"{longer['interval'][1]:.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
