"""A reward model that is told principles, on human prompts: judge, reward model, and a side effect taken back.

Four cells after each other on SmolLM2-135M, each up to a quarter of an hour on 2 cores, kept in
benchmarks/results/principles.jsonl: "judge", how far the model agrees with itself as a judge under each principle;
"reward", a reward model trained on principles whose labels are programs (pairs of HH, answers of at most 48 tokens),
its accuracy on other prompts and how often a negated principle turns its order; "policy", 100 steps of RLOO against it
told one principle, and told a second one that was not needed before, with no new label.
"""

import argparse
import json
import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.audit.statistics import Estimate, proportion
from assay.feedback.read import read_comparisons
from assay.feedback.split import split_by_prompt
from assay.feedback.write import write_records
from assay.records import Comparison, Response, text_of
from assay.rewards.judge import open_judge, opinions
from assay.rewards.model import RewardModel
from assay.rewards.principles import Principle, instructed
from assay.rewards.salmon import Aggregation, build_preferences
from assay.stages.judging import consistency
from grid import fill
from human_pairs import (
    DATA,
    HERE,
    MODEL,
    NUM_TEST,
    NUM_TRAIN,
    SETTINGS,
    right,
    run_assay,
    short_pairs,
    shown,
    write_rows,
)

REFUSES = re.compile(r"\b(sorry|can\W?t|cannot|won\W?t|unable|not able to|not comfortable)\b", re.IGNORECASE)
NUM_JUDGED, STEPS, NUM_EVALUATED = 64, 100, 128


def brevity(text: str) -> float:
    """Minus the number of words."""
    return -float(len(text.split()))


def frankness(text: str) -> float:
    """0 for an answer that refuses, else 1."""
    return float(not REFUSES.search(text))


def asking(text: str) -> float:
    """1 for an answer that asks something back."""
    return float("?" in text)


MEASURES: Mapping[str, Callable[[str], float]] = {"concise": brevity, "frank": frankness, "asks": asking}
PRINCIPLES = (
    Principle(name="concise", text="The answer is short.", negation="The answer is long and detailed."),
    Principle(name="frank", text="The answer does not refuse.", negation="The answer refuses to help."),
    Principle(name="asks", text="The answer asks the user a question.", negation="The answer asks no question."),
)


def asks(prompts: Sequence[Any], responses: Sequence[Any]) -> list[float]:
    """An oracle for `assay evaluate`: which answers ask something back."""
    return [asking(text if isinstance(text, str) else text[-1]["content"]) for text in responses]


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--run", type=Path, default=HERE.parent / "runs" / "principles")
    options.add_argument("--results", type=Path, default=HERE / "results" / "principles.jsonl")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--lr", type=float, default=2e-5, help="of the reward model")
    options.add_argument("--epochs", type=int, default=1, help="of the reward model")
    return options.parse_args()


def measured(pairs: Sequence[Comparison]) -> torch.Tensor:
    """[N, K, 2] what the programs say of each pair, the same in both orders."""
    rows = [[measure(text_of(c.chosen)) - measure(text_of(c.rejected)) for measure in MEASURES.values()] for c in pairs]
    return torch.tensor(rows)[..., None].expand(-1, -1, 2)


def judge_cell(pairs: Sequence[Comparison]) -> dict[str, Any]:
    """Order agreement and bias of SmolLM2 as a judge, principle by principle."""
    some = pairs[:NUM_JUDGED]
    found = consistency(opinions(open_judge(MODEL), some, [p.text for p in PRINCIPLES]), list(MEASURES), some)
    return {f.probe: {"value": f.value, "interval": f.interval, "n": f.n} for f in found}


def reward_cell(
    train: Sequence[Comparison], test: Sequence[Comparison], run: Path, cell: Mapping[str, Any]
) -> dict[str, Any]:
    """Train on labels under drawn principles; test on clean labels of other prompts, and by turning each principle."""
    aggregation, seed = Aggregation(passes=2), cell["seed"]
    drawn = build_preferences(train, measured(train), PRINCIPLES, aggregation, rng=random.Random(seed))
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    write_records(run / "feedback.jsonl", drawn)
    told = ["--run", run, "--model", MODEL, "--data.path", run / "feedback.jsonl", "--held_out", 0, "--seed", seed]
    run_assay("reward", *told, *SETTINGS, "--optimiser.lr", cell["lr"], "--epochs", cell["epochs"])
    reward = RewardModel.from_pretrained(str(run / "reward"))
    clean = build_preferences(test, measured(test), PRINCIPLES, Aggregation(passes=1, flip=0), rng=random.Random(seed))
    odds = scores(reward, [(c, c.chosen, c.rejected) for c in clean])
    found = {"held-out accuracy": proportion(right(odds), [c.prompt.id for c in clean])}
    turned: list[np.ndarray] = []
    prompts: list[str] = []
    for place, principle in enumerate(PRINCIPLES):
        split = [c for c, says in zip(test, measured(test)[:, place, 0], strict=True) if says]
        gaps = [
            scores(reward, [(c, *(instructed(r, [(principle, sign)]) for r in (c.chosen, c.rejected))) for c in split])
            for sign in (1, -1)
        ]
        ids = [c.prompt.id for c in split]
        says = measured(split)[:, place, 0].numpy()
        found[f"accuracy told {principle.name}"] = proportion(right(gaps[0] * np.sign(says)), ids)
        turned.append((np.sign(gaps[0]) != np.sign(gaps[1])).astype(float))
        found[f"turned by not:{principle.name}"] = proportion(turned[-1], ids)
        prompts += ids
    found["turned by negation"] = proportion(np.concatenate(turned), prompts)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    return {"num": len(drawn), **{name: told_as(figure) for name, figure in found.items()}}


def scores(reward: RewardModel, rows: Sequence[tuple[Comparison, Response, Response]]) -> np.ndarray:
    """[N] reward of the first response minus the second one's."""
    rewards = np.array(reward.score([(c.prompt, response) for c, *two in rows for response in two]))
    return rewards[0::2] - rewards[1::2]


def told_as(figure: Estimate) -> dict[str, Any]:
    """An estimate as JSON."""
    return {"value": figure.value, "interval": figure.interval, "n": figure.n}


def policy_cell(reward: Path, files: Mapping[str, Path], run: Path, told: Sequence[str], seed: int) -> dict[str, Any]:
    """RLOO against the reward told these principles; then how many answers ask, and how long they are."""
    shutil.rmtree(run, ignore_errors=True)
    common = ["--run", run, "--seed", seed, "--sampling.max_tokens", 48]
    words = ["--model", MODEL, "--data.path", files["train"], "--reward", reward, "--ignore_gate", "true"]
    words += ["--principles.path", files["principles"], "--principles.told", *told, "--steps", STEPS]
    words += ["--batch_size", 4, "--num_answers", 4, "--optimiser.lr", "2e-5", "--optimiser.schedule", "constant"]
    run_assay("policy", *common, *words, "--algorithm", "rloo", "--algorithm.kl_coef", "0.05", "--checkpoints.every", 0)
    evaluated = ["--prompts.path", files["test"], "--num_prompts", NUM_EVALUATED, "--oracle", f"{__file__}:asks"]
    run_assay("evaluate", *common, *evaluated)
    findings = json.loads((run / "evaluation.json").read_text())["findings"]
    shutil.rmtree(run / "policy", ignore_errors=True)
    return {f["probe"]: {name: f.get(name) for name in ("value", "interval", "n")} for f in findings}


def table(lines: Sequence[Mapping[str, Any]]) -> None:
    """Every figure of every cell."""
    for line in lines:
        print(dict(line["cell"]))
        for name, figure in line["record"].items():
            if isinstance(figure, dict) and figure.get("interval"):
                print(f"  {name:26} {shown(Estimate(figure['value'], tuple(figure['interval']), figure['n']))}")


def main() -> None:
    args = parse()
    records = read_comparisons(str(short_pairs(args.data, args.run / "pairs.jsonl"))).records
    train, test = split_by_prompt(records[: NUM_TRAIN + NUM_TEST], held_out=NUM_TEST, seed=args.seed)
    files = {"principles": args.run / "principles.jsonl"}
    write_rows([{"name": p.name, "text": p.text, "negation": p.negation} for p in PRINCIPLES], files["principles"])
    for name, pairs in (("train", train), ("test", test)):
        files[name] = args.run / f"{name}_prompts.jsonl"
        write_records(files[name], [c.prompt for c in pairs])
    reward = args.run / f"reward_{args.lr:g}_{args.epochs}"

    def compute(cell: Mapping[str, Any]) -> dict[str, Any]:
        if cell["part"] == "judge":
            return judge_cell(test)
        if cell["part"] == "reward":
            return reward_cell(train, test, reward, cell)
        if not (reward / "reward").exists():
            raise SystemExit(f"{reward} is gone: remove the line of part 'reward' from {args.results} and run again")
        return policy_cell(reward / "reward", files, args.run / "policy_cell", cell["told"], args.seed)

    fit = {"lr": args.lr, "epochs": args.epochs}
    parts: list[dict[str, Any]] = [{"part": "judge"}, {"part": "reward", **fit}]
    parts += [{"part": "policy", "told": told, **fit} for told in (["asks"], ["asks", "not:concise"])]
    table(fill([{**part, "seed": args.seed} for part in parts], compute, args.results))


if __name__ == "__main__":
    main()
