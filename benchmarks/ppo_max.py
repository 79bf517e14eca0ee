"""PPO-max beside plain PPO without a KL: how far each goes, judged by a reward model that was not optimised.

Two reward models of SmolLM2-135M-Instruct on pairs of HH-harmless with short answers, of different prompts: one is
optimised, the other watches. Then 150 optimiser steps of each, answers of at most 48 tokens, adapters of rank 16, and
for `--kinds` that name them runs that flip one trick of PPO-max. About twenty minutes a cell on 2 cores; finished cells
are kept in benchmarks/results/ppo_max.jsonl.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.lab.ablation import FLIPS
from demo_world import RUNS, figure
from grid import fill
from human_pairs import DATA, HERE, MODEL, SETTINGS, Row, run_assay, short_rows, write_rows

NUM_PAIRS, NUM_TEST, STEPS, TOKENS = 500, 96, 150, 48
COMMON = ("--batch_size", "4", "--num_answers", "2", "--sampling.max_tokens", str(TOKENS), "--lora.rank", "16")
COMMON += ("--optimiser.lr", "2e-4", "--optimiser.schedule", "constant", "--critic.lr", "2e-4")
COMMON += ("--checkpoints.every", "0", "--ignore_gate", "true")
MAX = ("--algorithm.name", "ppo_max")
VANILLA = ("--algorithm.name", "ppo", "--critic.start", "reward")
VANILLA += ("--algorithm.num_epochs", "1", "--algorithm.num_minibatches", "4")
OF_THE_RUN = {"max_norm": "optimiser.max_norm", "critic_alone": "critic.alone", "critic_start": "critic.start"}
NO_SUCH_RUN = "policy from nothing"  # a language model that was never trained


def flipped(changed: Mapping[str, Any]) -> tuple[str, ...]:
    """PPO-max with these fields changed, as options."""
    told = {OF_THE_RUN.get(name, f"algorithm.{name}"): value for name, value in changed.items()}
    return (*MAX, *(word for name, value in told.items() for word in (f"--{name}", str(value))))


RUNS_OF: Mapping[str, tuple[str, ...]] = {
    "vanilla": (*VANILLA, "--algorithm.kl_coef", "0", "--algorithm.value_clip", "0"),
    "ppo_max": MAX,
    **{name: flipped(changed) for name, changed in FLIPS.items() if name != NO_SUCH_RUN},
}


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--run", type=Path, default=RUNS / "ppo_max")
    options.add_argument("--results", type=Path, default=HERE / "results" / "ppo_max.jsonl")
    options.add_argument("--kinds", nargs="+", default=["vanilla", "ppo_max"], choices=RUNS_OF)
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


def fit(rows: Sequence[Row], run: Path, seed: int) -> dict[str, Any]:
    """A reward model, and how right it is on a tenth of its prompts."""
    shutil.rmtree(run, ignore_errors=True)
    data = write_rows(rows, run / "pairs.jsonl")
    run_assay("reward", "--run", run, "--model", MODEL, "--data.path", data, "--seed", seed, *SETTINGS)
    return json.loads((run / "held_out.json").read_text())


def optimise(args: argparse.Namespace, kind: str, prompts: Mapping[str, Path]) -> dict[str, Any]:
    """One policy, and what the other reward model thinks of it."""
    run = args.run / kind
    shutil.rmtree(run, ignore_errors=True)
    proxy, gold = args.run / "proxy" / "reward", args.run / "gold" / "reward"
    told = ["--run", run, "--model", MODEL, "--data.path", prompts["train"], "--reward", proxy, "--seed", args.seed]
    told += ["--steps", STEPS, "--oracle", f"reward:{gold}", "--watch.path", prompts["test"], "--watch.limit", 32]
    told += ["--watch_every", 50]
    if "--algorithm.ptx_coef" in RUNS_OF[kind]:
        told += ["--streams.ptx.path", prompts["text"]]
    run_assay("policy", *told, *COMMON, *RUNS_OF[kind])
    asked = ["--prompts.path", prompts["test"], "--num_prompts", NUM_TEST, "--oracle", f"reward:{gold}"]
    run_assay(
        "evaluate", "--run", run, *asked, "--reward", proxy, "--sampling.max_tokens", TOKENS, "--seed", args.seed + 1
    )
    findings = json.loads((run / "evaluation.json").read_text())["findings"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "reward", "oracle", "proxy", "kl", "entropy", "length_mean", "ref_nll", "value_loss")
    shutil.rmtree(run / "policy", ignore_errors=True)
    return {
        "findings": {f["probe"]: {name: f.get(name) for name in ("value", "interval", "n")} for f in findings},
        "curve": [{name: row[name] for name in kept if name in row} for row in rows],
    }


def table(lines: Sequence[Mapping[str, Any]]) -> None:
    """Every run's end."""
    for line in lines:
        if "kind" not in line["cell"]:
            print(dict(line["cell"]), line["record"]["held-out accuracy"])
            continue
        print(line["cell"]["kind"])
        for probe in ("gain", "reward/difference", "kl", "perplexity/ratio", "length/base", "length/policy"):
            print(f"  {probe:20} {figure(line['record'], probe)}")


def main() -> None:
    args = parse()
    rows = short_rows(args.data, lambda row: "harmless" in row["subset"], prompt=128)
    parts = {"proxy": rows[:NUM_PAIRS], "gold": rows[NUM_PAIRS : 2 * NUM_PAIRS]}
    shown = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in parts["proxy"]]
    prompts = {"text": write_rows(shown, args.run / "text.jsonl")}
    prompts |= {
        name: write_rows([{"prompt": row["prompt"]} for row in part], args.run / f"{name}_prompts.jsonl")
        for name, part in (("train", parts["proxy"]), ("test", rows[-NUM_TEST:]))
    }

    def compute(cell: Mapping[str, Any]) -> dict[str, Any]:
        if "model" in cell:
            return fit(parts[cell["model"]], args.run / cell["model"], args.seed)
        for name in parts:
            if not (args.run / name / "reward").exists():
                raise SystemExit(f"{name} is gone: remove its line from {args.results} and run again")
        return optimise(args, cell["kind"], prompts)

    cells = [{"model": "proxy"}, {"model": "gold"}, *({"kind": kind} for kind in args.kinds)]
    table(fill([{**cell, "seed": args.seed} for cell in cells], compute, args.results))


if __name__ == "__main__":
    main()
