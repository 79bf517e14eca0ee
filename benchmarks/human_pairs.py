"""What experiments on human labels share: pairs with short answers, log-odds of held-out pairs, figures as text."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assay.audit.statistics import Estimate
from assay.cli import main as assay
from assay.engine.catalog import load_tokenizer, resolve_model
from assay.feedback.read import read_comparisons
from assay.records import Comparison
from assay.rewards.model import Reward

HERE = Path(__file__).parent
MODEL = "smollm2-135m-instruct"
DATA = HERE.parent.parent / "shared" / "data" / "pairs_hh_test_human_plus_relabel.jsonl"
NUM_TRAIN, NUM_TEST, LONGEST = 1000, 512, 48  # pairs, prompts, tokens of an answer
SETTINGS = ["--optimiser.lr", "2e-5", "--likelihood.centring_coef", "0.01", "--checkpoints.every", "0"]

Row = dict[str, Any]


def run_assay(verb: str, *words: object) -> None:
    """One verb of the command line; an exit code other than 0 ends the program."""
    if code := assay([verb, *map(str, words)]):
        raise SystemExit(f"assay {verb} ended with exit code {code}")


def short_rows(data: Path, wanted: Callable[[Row], bool] = lambda row: True, *, prompt: int = 10**9) -> list[Row]:
    """Rows whose answers have at most LONGEST tokens each, and whose prompts at most `prompt`, in file order."""
    tokenizer = load_tokenizer(resolve_model(MODEL))

    def size(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [
        row
        for row in rows
        if wanted(row)
        and max(size(row["chosen"]), size(row["rejected"])) <= LONGEST
        and sum(size(message["content"]) for message in row["prompt"]) <= prompt
    ]


def short_pairs(data: Path, out: Path) -> Path:
    """A file of the first rows whose answers are short: as many as are trained and tested on."""
    kept = short_rows(data)
    if len(kept) < NUM_TRAIN + NUM_TEST:
        raise SystemExit(f"{data} has {len(kept)} pairs of answers this short; {NUM_TRAIN + NUM_TEST} are needed")
    return write_rows(kept[: NUM_TRAIN + NUM_TEST], out)


def write_rows(rows: Sequence[Row], out: Path) -> Path:
    """A JSONL file, its folder made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return out


def held_out_pairs(run: Path) -> tuple[Comparison, ...]:
    """What a run kept for testing."""
    return read_comparisons(str(run / "held_out.jsonl")).records


def differences(reward: Reward, pairs: Sequence[Comparison]) -> np.ndarray:
    """[P] reward of the chosen response minus the rejected one's."""
    rewards = np.array(reward.score([(c.prompt, answer) for c in pairs for answer in (c.chosen, c.rejected)]))
    return rewards[0::2] - rewards[1::2]


def right(log_odds: np.ndarray) -> np.ndarray:
    """[P] 1 where the chosen response is preferred, a tie counts half."""
    return (log_odds > 0) + 0.5 * (log_odds == 0)


def shown(figure: Estimate) -> str:
    """Value and interval."""
    return f"{figure.value:6.3f} ({figure.interval[0]:6.3f} to {figure.interval[1]:6.3f})"
