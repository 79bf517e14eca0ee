"""XPO beside Online DPO where what is wanted is rare: does the bonus find it sooner?

The reward is a program that the base model's answers hardly ever satisfy: of a few, the commonest that at most 2% of
512 answers of at most 24 tokens do. Labels are drawn by Bradley-Terry; 800 comparisons at most; three seeds with and
without the bonus. At most twenty minutes a cell on 2 cores; finished cells are kept in
benchmarks/results/exploration.jsonl.
"""

import argparse
import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.recipes.demo import write_prompts
from assay.report.run import RunDirectory
from demo_world import RUNS, figure, over_seeds
from grid import fill
from human_pairs import HERE, MODEL, run_assay

WORTH, BETA, ALPHAS = 2.0, 0.1, (0.0, 1e-3)
BATCHES, PROMPTS, TOKENS, TESTED = 40, 20, 24, 128  # 800 comparisons; prompts to test on
FEATURES: Mapping[str, Callable[[str], bool]] = {
    "asks and exclaims": lambda text: "?" in text and "!" in text,
    "semicolon": lambda text: ";" in text,
    "brackets": lambda text: "(" in text,
    "question": lambda text: "?" in text,
    "exclamation": lambda text: "!" in text,
    "numbered": lambda text: bool(re.search(r"(^|\n)\s*\d+[.)]", text)),
    "quotes": lambda text: '"' in text,
    "capitals": lambda text: bool(re.search(r"\b[A-Z]{3,}\b", text)),
}
RULE = '''"""The wanted feature, {name!r}."""
import sys
sys.path.insert(0, {here!r})
from exploration import FEATURES, WORTH


def wanted(prompts, responses, **columns):
    texts = [r if isinstance(r, str) else r[-1]["content"] for r in responses]
    return [WORTH * FEATURES[{name!r}](text) for text in texts]
'''


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, default=RUNS / "exploration")
    options.add_argument("--results", type=Path, default=HERE / "results" / "exploration.jsonl")
    options.add_argument("--alphas", nargs="+", type=float, default=list(ALPHAS))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return options.parse_args()


def prevalence(prompts: Path, run: Path) -> dict[str, Any]:
    """How often each feature occurs among answers of the base model."""
    import torch

    from assay.engine.samples import SamplingSettings
    from assay.feedback.read import read_prompts
    from assay.records import text_of
    from assay.stages.sampling import PolicySampler

    sampler = PolicySampler.load(MODEL, SamplingSettings(max_tokens=TOKENS))
    asked = read_prompts(str(prompts)).records[:256]
    texts = [text_of(rollout.response) for rollout in sampler.sample(asked, 2, torch.Generator().manual_seed(0))]
    return {name: sum(map(has, texts)) / len(texts) for name, has in FEATURES.items()}


def explore(
    args: argparse.Namespace, name: str, prompts: Mapping[str, Path], alpha: float, seed: int
) -> dict[str, Any]:
    """One run; how many comparisons until the feature was first seen, and how common it is in the end."""
    run, rule = args.run / f"alpha_{alpha:g}_{seed}", args.run / "rule.py"
    shutil.rmtree(run, ignore_errors=True)
    rule.write_text(RULE.format(name=name, here=str(HERE)))
    told = ["--run", run, "--model", MODEL, "--data.path", prompts["train"], "--rules", f"{rule}:wanted"]
    told += ["--algorithm.name", "xpo", "--algorithm.alpha", alpha, "--algorithm.beta", BETA, "--seed", seed]
    told += ["--num_answers", 1, "--batch_size", PROMPTS, "--steps", BATCHES, "--sampling.max_tokens", TOKENS]
    told += ["--optimiser.lr", "5e-5", "--optimiser.schedule", "constant", "--checkpoints.every", 0]
    run_assay("policy", *told)
    asked = ["--prompts.path", prompts["held_out"], "--num_prompts", TESTED, "--oracle", f"{rule}:wanted"]
    run_assay("evaluate", "--run", run, *asked, "--sampling.max_tokens", TOKENS, "--seed", seed + 1)
    findings = json.loads((run / "evaluation.json").read_text())["findings"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [row["step"] for row in rows if row.get("reward", 0) > 0]
    shutil.rmtree(run / "policy", ignore_errors=True)
    return {
        "first_seen": seen[0] * PROMPTS if seen else None,
        "share_of_batches_with": len(seen) / len(rows),
        "findings": {f["probe"]: {key: f.get(key) for key in ("value", "interval", "n")} for f in findings},
    }


def table(lines: Sequence[Mapping[str, Any]]) -> None:
    """Prevalences, then each run, then each alpha over its seeds."""
    print({name: f"{share:.3f}" for name, share in lines[0]["record"].items()})
    found: dict[float, list[float]] = {}
    for line in lines[1:]:
        record, cell = line["record"], line["cell"]
        share = record["findings"]["oracle/policy"]["value"] / WORTH
        regularised = record["findings"]["oracle/policy"]["value"] - BETA * record["findings"]["kl"]["value"]
        found.setdefault(cell["alpha"], []).append(regularised)
        print(f"alpha {cell['alpha']:g} seed {cell['seed']}: first seen after {record['first_seen']} comparisons, "
              f"{share:.3f} of answers, KL {figure(record, 'kl')}, J {regularised:.3f}")  # fmt: skip
    for alpha, values in found.items():
        print(f"alpha {alpha:g}: J {over_seeds(values)}")


def main() -> None:
    args = parse()
    prompts = write_prompts(RunDirectory(str(args.run / "prompts")))
    first = {"part": "prevalence"}

    def compute(cell: Mapping[str, Any]) -> dict[str, Any]:
        if cell == first:
            return prevalence(prompts["train"], args.run)
        return explore(args, cell["feature"], prompts, cell["alpha"], cell["seed"])

    (shares,) = fill([first], compute, args.results)
    rare = {name: share for name, share in shares["record"].items() if 0 < share <= 0.02}
    if not rare:
        raise SystemExit(f"none of the features is rare: {shares['record']}")
    feature = max(rare, key=lambda name: rare[name])
    cells = [{"feature": feature, "alpha": a, "seed": s} for s, a in itertools.product(args.seeds, args.alphas)]
    table([shares, *fill(cells, compute, args.results)])


if __name__ == "__main__":
    main()
