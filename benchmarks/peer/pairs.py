"""Feedback for the peer: JSONL rows of pairs or ranked groups, as TRL's conversational preference rows."""

import itertools
import json
from pathlib import Path
from typing import Any

from measure import fail


def read_rows(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line; blank lines are passed over."""
    if not path.is_file():
        fail(f"{path}: no such file")
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                fail(f"{path} line {number}: not JSON ({error.msg}); write one object a line")
            if "prompt" not in row or not ({"chosen", "rejected"} <= row.keys() or "responses" in row):
                fail(f"{path} line {number}: needs prompt and either chosen and rejected, or responses (best first)")
            rows.append(row)
    return rows


def pair_up(num_responses: int, num_pairs: int) -> list[tuple[int, int]]:
    """Which ranks are compared, as (better, worse).

    k // 2 pairs: disjoint, best with worst and so on inwards, each response read once. k - 1: neighbours.
    k (k - 1) / 2: all.
    """
    k = num_responses
    if num_pairs == k // 2:
        return [(rank, k - 1 - rank) for rank in range(k // 2)]
    if num_pairs == k - 1:
        return [(rank, rank + 1) for rank in range(k - 1)]
    if num_pairs != k * (k - 1) // 2:
        fail(f"--pairs-per-group {num_pairs}: {k} responses make {k // 2}, {k - 1} or {k * (k - 1) // 2} pairs")
    return list(itertools.combinations(range(k), 2))


def read_pairs(path: Path, *, num_pairs: int = 0, pairs_per_group: int = 2) -> list[dict[str, Any]]:
    """TRL rows: prompt (messages), chosen and rejected (one assistant message each); the first `num_pairs`, 0: all."""
    pairs = []
    for row in read_rows(path):
        if "chosen" in row:
            pairs.append(_pair(row["prompt"], row["chosen"], row["rejected"]))
        else:
            texts = row["responses"]
            ranks = pair_up(len(texts), pairs_per_group)
            pairs += [_pair(row["prompt"], texts[better], texts[worse]) for better, worse in ranks]
        if num_pairs and len(pairs) >= num_pairs:
            return pairs[:num_pairs]
    if len(pairs) < num_pairs:
        fail(f"{path} has {len(pairs)} pairs, {num_pairs} were asked for; lower --num-pairs")
    if not pairs:
        fail(f"{path} has no pairs")
    return pairs


def _pair(prompt: list[dict[str, str]], chosen: str, rejected: str) -> dict[str, Any]:
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    return {"prompt": turns, "chosen": [_reply(chosen)], "rejected": [_reply(rejected)]}


def _reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def conversations(pair: dict[str, Any]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Prompt with chosen, prompt with rejected."""
    return pair["prompt"] + pair["chosen"], pair["prompt"] + pair["rejected"]


def token_lengths(pairs: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """Tokens of the longer of each pair's two conversations."""
    return [
        max(len(tokenizer.apply_chat_template(talk)["input_ids"]) for talk in conversations(pair)) for pair in pairs
    ]
