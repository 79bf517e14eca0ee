"""Every kind of human feedback at hand, each with the likelihood that fits it, and what it gets right on other prompts.

A cell is one `assay reward` on SmolLM2-135M, up to twenty minutes on one core; finished cells are kept in
benchmarks/results/real_feedback.jsonl, those of smaller learning rates too. docs/datasets.md shows the same lines.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.audit.statistics import Estimate
from grid import fill
from human_pairs import DATA, HERE, run_assay, shown

SETS: Mapping[str, list[str]] = {
    "kwise_oasst_en100": [
        *("--likelihood", "kwise_bradley_terry", "--held_out", "40"),
        *("--optimiser.lr", "5e-5", "--epochs", "2"),
    ],
    "ratings_shepherd": [
        *("--likelihood", "ordinal", "--held_out", "200", "--optimiser.lr", "5e-5"),
        *("--data.objectives", "Is the candidate output correct and relevant to the context?"),
    ],
    "span_finegrained_qa": [
        *("--likelihood", "spans", "--held_out", "100", "--data.too_long", "skip"),
        *("--optimiser.lr", "1e-4"),
    ],
    "multiannot_dexperts_toxicity": [
        *("--likelihood", "davidson", "--held_out", "100", "--data.on_bad", "skip"),
        *("--data.objectives", "less_toxic", "--optimiser.lr", "5e-5"),
    ],
    "dual_hh_helpful_harmless": [
        "--data.objectives",
        "helpful",
        "harmless",
        "--held_out",
        "200",
        "--data.limit",
        "2000",
    ],
}


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=DATA.parent, help="the folder of the sets")
    options.add_argument("--run", type=Path, default=HERE.parent / "runs" / "real_feedback")
    options.add_argument("--results", type=Path, default=HERE / "results" / "real_feedback.jsonl")
    options.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    return options.parse_args()


def main() -> None:
    args = parse()

    def compute(cell: Mapping[str, Any]) -> dict[str, Any]:
        run = args.run / cell["set"]
        shutil.rmtree(run, ignore_errors=True)
        data = args.data / f"{cell['set']}.jsonl"
        run_assay("reward", "--run", run, "--data.path", data, "--checkpoints.every", "0", *cell["words"])
        found = json.loads((run / "held_out.json").read_text())
        shutil.rmtree(run, ignore_errors=True)
        return found

    for line in fill([{"set": name, "words": SETS[name]} for name in args.sets], compute, args.results):
        print(f"assay reward --data.path {line['cell']['set']}.jsonl {' '.join(line['cell']['words'])}")
        num = line["record"]["n"]
        for name, figure in line["record"].items():
            if isinstance(figure, dict) and figure.get("interval"):
                print(f"  {name:44} {shown(Estimate(figure['value'], tuple(figure['interval']), num))}")


if __name__ == "__main__":
    main()
