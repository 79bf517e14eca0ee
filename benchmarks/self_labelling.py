"""Self-evolved reward learning on human labels: what the loops gain over their seed, and how right their labels are.

15% of 1,000 pairs of HH keep their labels (answers of at most 48 tokens), the model labels the others itself; 512
prompts of their own test it. Beside it a model with all labels. Three seeds, a grid of cells of up to a quarter of an
hour on 2 cores; finished cells are kept in benchmarks/results/self_labelling.jsonl.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assay.audit.statistics import bootstrap_mean, minimum_detectable_difference, paired_bootstrap
from assay.rewards.model import RewardModel
from grid import fill
from human_pairs import (
    DATA,
    HERE,
    MODEL,
    NUM_TEST,
    SETTINGS,
    differences,
    held_out_pairs,
    right,
    run_assay,
    short_pairs,
    shown,
)

SEED_SHARE = 0.15
METHODS: Mapping[str, list[str]] = {
    "SER": ["--labelled", str(SEED_SHARE), "--ser.status", "union", "--ser.min_selected", "50"],
    "seed alone": ["--labelled", str(SEED_SHARE), "--ser.max_loops", "0"],
    "all labels": [],
}


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--run", type=Path, default=HERE.parent / "runs" / "self_labelling")
    options.add_argument("--results", type=Path, default=HERE / "results" / "self_labelling.jsonl")
    options.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return options.parse_args()


def train_and_test(data: Path, run: Path, words: list[str], seed: int) -> dict[str, Any]:
    """One cell: reward differences of the held-out pairs, chosen first, their prompts, and what the loops said."""
    shutil.rmtree(run, ignore_errors=True)
    told = ["--run", run, "--model", MODEL, "--data.path", data, "--held_out", NUM_TEST, "--seed", seed]
    run_assay("reward", *told, *SETTINGS, *words)
    pairs = held_out_pairs(run)
    odds = differences(RewardModel.from_pretrained(str(run / "reward")), pairs)
    loops = json.loads((run / "ser.json").read_text())["loops"] if (run / "ser.json").exists() else []
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return {
        "log_odds": [round(x, 4) for x in odds.tolist()],
        "prompts": [c.prompt.id for c in pairs],
        "loops": loops,
    }


def table(lines: list[dict[str, Any]]) -> None:
    """Loops of each seed, then each method over all seeds beside the seed alone, pair by pair."""
    for line in lines:
        for loop in line["record"]["loops"]:
            if "precision" in loop:
                told = f"{loop['num']} of {loop['pool']} pairs by {loop['status']}, {loop['precision']:.3f} right"
                print(f"seed {line['cell']['seed']} loop {loop['loop']}: accuracy {loop['accuracy']:.3f}  {told}, "
                      f"{loop['whole']:.3f} over the pool")  # fmt: skip
    found = {
        method: tuple(
            np.concatenate([line["record"][name] for line in lines if line["cell"]["method"] == method])
            for name in ("log_odds", "prompts")
        )
        for method in dict.fromkeys(line["cell"]["method"] for line in lines)
    }
    for method, (odds, prompts) in found.items():
        words = f"{method:12} accuracy {shown(bootstrap_mean(right(odds), prompts))}"
        if method != "seed alone" and "seed alone" in found:
            mine, base = right(odds), right(found["seed alone"][0])
            least = minimum_detectable_difference(len(odds), float((mine != base).mean()))
            words += f"  over the seed {shown(paired_bootstrap(mine, base, prompts))}, could have shown {least:.3f}"
        print(words)


def main() -> None:
    args = parse()
    data = short_pairs(args.data, args.run / "pairs.jsonl")
    cells = [{"method": method, "seed": seed} for seed in args.seeds for method in args.methods]

    def compute(cell: Mapping[str, Any]) -> dict[str, Any]:
        return train_and_test(data, args.run / "cell", METHODS[cell["method"]], cell["seed"])

    table(fill(cells, compute, args.results))


if __name__ == "__main__":
    main()
