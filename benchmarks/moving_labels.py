"""Iterative data smoothing beside maximum likelihood and weight decay: five epochs on few judgements, epoch by epoch.

Short pairs of HH-harmless. "gold": judgements drawn from a reward that is a program (Bradley-Terry), a few pairs judged
many times and most of them once; tested by the cross-entropy with the true probabilities on other prompts. "human": the
people's own labels, once each; reported only, for nobody knows the truth. Cells of about ten minutes on 2 cores;
finished ones are kept in benchmarks/results/moving_labels.jsonl.
"""

import argparse
import itertools
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from assay.audit.statistics import bootstrap_mean, paired_bootstrap
from assay.cli import resolve
from assay.engine.checkpoint import TENSORS
from assay.feedback.annotators import SimulatedAnnotator
from assay.feedback.oracles import TextOracle
from assay.feedback.read import read_comparisons
from assay.feedback.write import write_records
from assay.records import Comparison
from assay.rewards.model import RewardModel
from assay.stages import reward as stage
from grid import fill
from human_pairs import DATA, HERE, MODEL, SETTINGS, Row, differences, short_rows, shown, write_rows

NUM_TRAIN, LONGEST_PROMPT, EPOCHS, BATCH = 320, 64, 5, 8
MOST = 20  # judgements of the pair that is judged most; the i-th has MOST / i, at least one
METHODS: Mapping[str, list[str]] = {
    "likelihood": [],
    "IDS": ["--ids.beta", "0.7"],
    "weight decay": ["--optimiser.weight_decay", "1"],
}


@dataclass(frozen=True)
class Split:
    """A file of judgements to learn from, and test pairs with the probability that their chosen response wins."""

    train: Path
    tested: Sequence[Comparison]
    truth: np.ndarray


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--run", type=Path, default=HERE.parent / "runs" / "moving_labels")
    options.add_argument("--results", type=Path, default=HERE / "results" / "moving_labels.jsonl")
    options.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options.add_argument("--labels", nargs="+", default=["gold", "human"], choices=("gold", "human"))
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    return options.parse_args()


def split(rows: Sequence[Row], labels: str, seed: int, folder: Path) -> Split:
    """Prompts to learn from and to test on, drawn by the seed; each row's judgements as the labels say."""
    order = np.random.default_rng(seed).permutation(len(rows))
    train, test = ([rows[i] for i in part] for part in (order[:NUM_TRAIN], order[NUM_TRAIN:]))
    pairs = read_comparisons(str(write_rows(test, folder / "test.jsonl"))).records
    if labels == "human":
        return Split(write_rows(train, folder / "train.jsonl"), pairs, np.ones(len(pairs)))
    judged = read_comparisons(str(write_rows(train, folder / "pairs.jsonl"))).records
    drawn: list[Comparison] = []
    for place, pair in enumerate(judged):
        for draw in range(max(1, MOST // (place + 1))):
            annotator = SimulatedAnnotator(oracle=TextOracle(), seed=seed, name=f"draw {draw}")
            drawn += annotator.label([(pair.prompt, pair.chosen, pair.rejected)])
    write_records(folder / "train.jsonl", drawn[: len(drawn) // BATCH * BATCH])  # whole steps: an epoch ends with one
    truth = SimulatedAnnotator(oracle=TextOracle()).probability([(c.prompt, c.chosen, c.rejected) for c in pairs])
    return Split(folder / "train.jsonl", pairs, np.array(truth))


def train_and_test(data: Split, run: Path, words: list[str], seed: int) -> dict[str, Any]:
    """One cell: reward differences of the test pairs after every epoch, and where the labels went."""
    shutil.rmtree(run, ignore_errors=True)
    steps = len(read_comparisons(str(data.train)).records) // BATCH
    told = ["--run", run, "--model", MODEL, "--data.path", data.train, "--held_out", 0, "--seed", seed]
    told += ["--epochs", EPOCHS, "--batch_size", BATCH, "--optimiser.schedule", "constant", *SETTINGS[:-2]]
    told += ["--checkpoints.every", steps, "--checkpoints.keep", EPOCHS, *words]
    model = stage.run(resolve("reward", [str(word) for word in told], None))
    assert isinstance(model, RewardModel)
    odds: list[list[float]] = []
    for epoch in range(1, EPOCHS + 1):
        tensors = load_file(run / "checkpoints" / "reward" / f"step-{epoch * steps}" / TENSORS)
        own = {name.removeprefix("learner0."): t for name, t in tensors.items() if name.startswith("learner0.")}
        model.learner.load_state_dict(own)
        odds.append([round(x, 4) for x in differences(model, data.tested).tolist()])
    found = {
        "log_odds": odds,
        "truth": [round(x, 4) for x in data.truth.tolist()],
        "prompts": [c.prompt.id for c in data.tested],
        "sureness": sureness(run / "labels.jsonl"),
    }
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return found


def sureness(labels: Path) -> dict[str, float]:
    """Mean |label - 1/2| of judgements of prompts judged once, and of the others, where labels moved."""
    if not labels.exists():
        return {}
    rows = read_comparisons(str(labels)).records
    times = Counter(c.prompt.id for c in rows)
    kinds = {"once": [c for c in rows if times[c.prompt.id] == 1], "more": [c for c in rows if times[c.prompt.id] > 1]}
    return {name: float(np.mean([abs(c.preference - 0.5) for c in found])) for name, found in kinds.items() if found}


def cross_entropy(odds: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[P] -p log sigmoid(d) - (1 - p) log sigmoid(-d), in nats."""
    return truth * np.logaddexp(0, -odds) + (1 - truth) * np.logaddexp(0, odds)


def table(lines: list[dict[str, Any]]) -> None:
    """Cross-entropy after each epoch; the last and the best epoch beside likelihood's, pair by pair."""
    for labels in dict.fromkeys(line["cell"]["labels"] for line in lines):
        mine = [line for line in lines if line["cell"]["labels"] == labels]
        found: dict[str, np.ndarray] = {}
        prompts = np.concatenate([line["record"]["prompts"] for line in mine if line["cell"]["method"] == "likelihood"])
        for method in dict.fromkeys(line["cell"]["method"] for line in mine):
            records = [line["record"] for line in mine if line["cell"]["method"] == method]
            entropies = [cross_entropy(np.array(r["log_odds"]), np.array(r["truth"])) for r in records]
            found[method] = np.concatenate(entropies, axis=1)
            means = found[method].mean(1)
            print(f"{labels:6} {method:14} nats after each epoch {'  '.join(f'{x:.4f}' for x in means)}")
            for record in records:
                if record["sureness"]:
                    print(f"{'':21} |label - 1/2|: {record['sureness']}")
        for method, entropy in found.items():
            if method == "likelihood":
                print(f"{labels:6} {method:14} last {shown(bootstrap_mean(entropy[-1], prompts))}")
                continue
            for name, pick in (("last", lambda e: e[-1]), ("best", lambda e: e[e.mean(1).argmin()])):
                first, second = pick(entropy), pick(found["likelihood"])
                least = 2.8 * float((first - second).std()) / math.sqrt(len(first))  # 80% power at 5%
                gained = paired_bootstrap(first, second, prompts)
                print(f"{labels:6} {method:14} {name} minus likelihood's {shown(gained)}, could have shown {least:.3f}")


def main() -> None:
    args = parse()
    rows = short_rows(args.data, lambda row: "harmless" in row["subset"], prompt=LONGEST_PROMPT)
    axes = itertools.product(args.seeds, args.labels, args.methods)
    cells = [{"labels": labels, "method": method, "seed": seed} for seed, labels, method in axes]

    def compute(cell: Mapping[str, Any]) -> dict[str, Any]:
        data = split(rows, cell["labels"], cell["seed"], args.run)
        return train_and_test(data, args.run / "cell", METHODS[cell["method"]], cell["seed"])

    table(fill(cells, compute, args.results))


if __name__ == "__main__":
    main()
