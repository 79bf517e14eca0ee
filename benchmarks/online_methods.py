"""Methods that learn from their own answers beside each other: the demo's reward, equal numbers of sampled answers.

SmolLM2-135M-Instruct against the demo's audited reward model, judged by the demo's oracle on 64 held-out prompts. Each
cell samples 12 batches of 4 prompts with 4 answers each (XPO: 2, policy and reference, on twice the batches), the
KL's coefficient and the learning rate are the demo's for all, none is tuned. At most twenty minutes a cell on 2 cores,
three seeds; finished cells are kept in benchmarks/results/online_methods.jsonl, the picture goes to
docs/online_methods.svg.
"""

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from demo_world import RUNS, half_width, over_seeds, policies
from grid import Cell
from human_pairs import HERE

BATCHES, PROMPTS, ANSWERS = 12, 4, 4
CRITIC = ("--critic.start", "reward")
ALONE = 8  # of PPO-max's steps, on the first two batches, train the critic only
METHODS: Mapping[str, tuple[int, tuple[str, ...]]] = {  # optimiser steps on a batch; settings
    "ppo": (4, CRITIC),
    "ppo_max": (4, ("--critic.alone", str(ALONE))),
    "rloo": (1, ()),
    "grpo": (1, ()),
    "reinforce": (1, ()),
    "p3o": (2, ()),
    "online_dpo": (1, ()),
    "xpo": (1, ("--algorithm.alpha", "1e-3")),
}


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=RUNS / "online_methods")
    options.add_argument("--results", type=Path, default=HERE / "results" / "online_methods.jsonl")
    options.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "online_methods.svg")
    options.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--num-prompts", type=int, default=64)
    return options.parse_args()


def words(method: str) -> tuple[int, list[object]]:
    """Optimiser steps of the policy, and what the run is told."""
    updates, own = METHODS[method]
    batches, prompts, answers = BATCHES, PROMPTS, ANSWERS
    if method == "xpo":  # two answers a prompt, one of them the reference's: the same number in all
        batches, answers = 2 * BATCHES, 1
    told = ["--algorithm.name", method, "--batch_size", prompts, "--num_answers", answers, "--optimiser.lr", "8e-5"]
    if method not in ("online_dpo", "xpo"):
        told += ["--algorithm.kl_coef", "0.1"]
    return batches * updates - (ALONE if method == "ppo_max" else 0), [*told, *own]


def picture(lines: list[dict[str, Any]], path: Path) -> None:
    """Oracle against KL: looks on the way, the end of each run, and the mean over seeds with its intervals."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = canvas.subplots()
    methods = list(dict.fromkeys(line["cell"]["method"] for line in lines))
    for method in methods:
        mine = [line["record"] for line in lines if line["cell"]["method"] == method]
        colour = f"C{methods.index(method)}"
        for record in mine if method != "xpo" else ():  # its KL on the way is of answers that older policies wrote too
            looks = [row for row in record["curve"] if "oracle" in row]  # the first is of the base, before any step
            axes.plot([row.get("kl", 0.0) for row in looks], [row["oracle"] for row in looks], color=colour, alpha=0.2)
        ends = [[r["findings"][name]["value"] for r in mine] for name in ("kl", "oracle/policy")]
        axes.scatter(*ends, color=colour, s=8)
        (x, dx), (y, dy) = ((fmean(values), half_width(values)) for values in ends)
        axes.errorbar(x, y, dy, dx, color=colour, marker="D", elinewidth=0.8, label=method, zorder=3)
    axes.set(xlabel="KL from the base, nats an answer", ylabel="oracle, mean of an answer")
    axes.legend(fontsize=8)
    with rc_context({"svg.hashsalt": "assay"}):  # the same lines make the same file
        canvas.savefig(path, metadata={"Date": None})


def table(lines: list[dict[str, Any]]) -> None:
    """Each method over its seeds."""
    print(f"{'':12} {'gain of the oracle':26} {'KL, nats':26} {'reward gained':26} {'length':8}")
    for method in dict.fromkeys(line["cell"]["method"] for line in lines):
        found = [line["record"]["findings"] for line in lines if line["cell"]["method"] == method]
        gain, kl, reward = ([f[n]["value"] for f in found] for n in ("gain", "kl", "reward/difference"))
        ratio = sum(f["length/policy"]["value"] / f["length/base"]["value"] for f in found) / len(found)
        print(f"{method:12} {over_seeds(gain):26} {over_seeds(kl):26} {over_seeds(reward):26} {ratio:.2f}")


def main() -> None:
    args = parse()
    cells = [{"method": method, "seed": seed} for seed, method in itertools.product(args.seeds, args.methods)]

    def plan(cell: Cell) -> tuple[list[object], dict[str, int]]:
        steps, told = words(cell["method"])
        return told, {"steps": steps, "watch": 24, "every": max(1, steps // 4), "tested": args.num_prompts}

    lines = policies(args, cells, plan)
    table(lines)
    picture(lines, args.picture)


if __name__ == "__main__":
    main()
