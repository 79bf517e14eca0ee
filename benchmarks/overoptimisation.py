"""Optimised for long against one reward model, with and without a KL: when the oracle turns, and what a limit saves.

SmolLM2-135M-Instruct and the demo's reward model; RLOO at a learning rate that overshoots, and at half of it. "free":
no KL; "stopped": the same with a limit on the oracle's loss; "budget": with a limit on the KL, which was read off the
first seed's free run and is tried on others; "bound": with a KL in the reward. Up to twenty minutes a cell on 2 cores;
finished cells are kept in benchmarks/results/overoptimisation.jsonl.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demo_world import RUNS, figure, policies
from grid import Cell
from human_pairs import HERE

STEPS = 36
COMMON = ("--algorithm.name", "rloo", "--batch_size", "4", "--num_answers", "4")
AT_ONCE = ("--stop.patience", "1", "--stop.smoothing", "0")
RUNS_OF: Mapping[str, tuple[str, ...]] = {
    "free": ("--algorithm.kl_coef", "0"),
    "stopped": ("--algorithm.kl_coef", "0", "--stop.oracle_drop", "0.1", *AT_ONCE),
    "budget": ("--algorithm.kl_coef", "0", "--stop.kl", "50", *AT_ONCE),
    "bound": ("--algorithm.kl_coef", "0.1"),
}
CELLS: Sequence[Cell] = (  # looks: steps from one look at the oracle to the next; watch: prompts of a look, else 48
    {"kind": "free", "lr": 2e-4, "looks": 3, "seed": 0},
    {"kind": "stopped", "lr": 2e-4, "looks": 1, "watch": 144, "seed": 0},
    {"kind": "bound", "lr": 2e-4, "looks": 3, "seed": 0},
    {"kind": "free", "lr": 2e-4, "looks": 3, "seed": 1},
    {"kind": "budget", "lr": 2e-4, "looks": 3, "seed": 1},
    {"kind": "free", "lr": 2e-4, "looks": 3, "seed": 2},
    {"kind": "budget", "lr": 2e-4, "looks": 3, "seed": 2},
    {"kind": "free", "lr": 1e-4, "looks": 2, "seed": 0},
    {"kind": "bound", "lr": 1e-4, "looks": 2, "seed": 0},
)


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=RUNS / "online_methods")
    options.add_argument("--results", type=Path, default=HERE / "results" / "overoptimisation.jsonl")
    options.add_argument("--kinds", nargs="+", default=list(RUNS_OF), choices=RUNS_OF)
    options.add_argument("--rates", nargs="+", type=float, default=[2e-4, 1e-4])
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return options.parse_args()


def table(lines: list[dict[str, Any]]) -> None:
    """Looks at the oracle, where it was best, and the end on further prompts."""
    for line in lines:
        record = line["record"]
        curve = [row for row in record["curve"] if "oracle" in row]
        looks = [(row["step"], row["oracle"], row.get("proxy", math.nan), row.get("kl", 0.0)) for row in curve]
        best = max(looks, key=lambda look: look[1])
        print(f"{line['cell']}: best look {best[1]:.3f} after step {best[0]}")
        print("  step  oracle   proxy      KL")
        for step, oracle, proxy, kl in looks:
            print(f"  {step:4d} {oracle:7.3f} {proxy:7.3f} {kl:7.2f}")
        if "stopped" in record:
            print(f"  stopped: {record['stopped']}; kept step {record['kept_step']}")
        for probe in ("oracle/base", "oracle/policy", "gain", "reward/difference", "kl", "perplexity/ratio"):
            print(f"  {probe:18} {figure(record, probe)}")


def main() -> None:
    args = parse()
    asked = {"kind": args.kinds, "lr": args.rates, "seed": args.seeds}
    cells = [cell for cell in CELLS if all(cell[name] in values for name, values in asked.items())]

    def plan(cell: Cell) -> tuple[list[object], dict[str, int]]:
        words = [*COMMON, "--optimiser.lr", cell["lr"], *RUNS_OF[cell["kind"]]]
        return words, {"steps": STEPS, "watch": cell.get("watch", 48), "every": cell["looks"], "tested": 96}

    table(policies(args, cells, plan))


if __name__ == "__main__":
    main()
