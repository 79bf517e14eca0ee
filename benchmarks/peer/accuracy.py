"""Held-out accuracy of a reward model that TRL trained; one JSON line on stdout (benchmarks/README.md)."""

import argparse
import contextlib
import math
from pathlib import Path
from typing import Any

from measure import answer, answering
from pairs import conversations, read_pairs
from reward import train_reward_model
from training import begin, parser

SCORING_BATCH = 16  # conversations, of similar length


def score(model: Any, tokenizer: Any, talks: list[Any], *, autocast: bool) -> list[float]:
    """Rewards in the order of `talks`, in the precision trained in."""
    import torch

    ids = [tokenizer.apply_chat_template(talk)["input_ids"] for talk in talks]
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    rewards = [math.nan] * len(ids)
    precision = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    model.eval()
    with torch.inference_mode(), precision:
        for start in range(0, len(ids), SCORING_BATCH):
            batch = by_length[start : start + SCORING_BATCH]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="right", return_tensors="pt")
            for i, reward in zip(batch, model(**inputs).logits[:, 0].tolist(), strict=True):
                rewards[i] = reward
    return rewards


def held_out(model: Any, tokenizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracy (a tie counts half), Bradley-Terry loss and margins on the held-out pairs, none left out."""
    pairs = read_pairs(args.held_out, num_pairs=args.num_held_out)
    talks = [talk for pair in pairs for talk in conversations(pair)]
    rewards = score(model, tokenizer, talks, autocast=args.weights == "autocast")
    margins = [chosen - rejected for chosen, rejected in zip(rewards[0::2], rewards[1::2], strict=True)]
    losses = [max(-margin, 0) + math.log1p(math.exp(-abs(margin))) for margin in margins]
    ties = sum(margin == 0 for margin in margins)
    right = sum(margin > 0 for margin in margins)
    return {
        "num_held_out": len(pairs),
        "num_ties": ties,
        "accuracy": round((right + ties / 2) / len(pairs), 5),
        "held_out_loss": round(sum(losses) / len(losses), 5),
        "margins": [round(margin, 5) for margin in margins],
    }


if __name__ == "__main__":
    options = parser(__doc__, lr=1e-5)
    options.add_argument("--held-out", type=Path, required=True, help="JSONL of pairs that --data does not hold")
    options.add_argument("--num-held-out", type=int, default=0, help="the first N pairs; 0: all")
    arguments = options.parse_args()
    begin(arguments)
    with answering() as out:
        trained, words, measured = train_reward_model(arguments, "accuracy")
        answer(out, {**measured, **held_out(trained, words, arguments)})
