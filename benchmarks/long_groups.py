"""Ranked groups with long prompts: questions over passages, filled with other questions' passages to one length.

Reads rows whose prompt is one user message "Answer the question from the passages.", passages "[1] ...", "Question:",
and whose responses have `text` and `scores.wins`. Groups with ties are left out and counted. Writes JSONL rows of
prompt and responses, best first, and prints the counts. Runs in either environment.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TASK = "Answer the question from the passages."
FORM = re.compile(re.escape(TASK) + r"\n\n(?P<passages>.*)\n\nQuestion: (?P<question>.*)", re.DOTALL)


def parse(row: dict[str, Any]) -> tuple[list[str], str] | None:
    """Passages without their numbers, and the question; None where the prompt has another form."""
    match = FORM.fullmatch(row["prompt"][0]["content"]) if len(row["prompt"]) == 1 else None
    if match is None:
        return None
    numbered = re.split(r"\n\n(?=\[\d+\] )", match["passages"])
    return [re.sub(r"^\[\d+\] ", "", passage) for passage in numbered], match["question"]


def prompt_of(passages: list[str], question: str) -> list[dict[str, str]]:
    """The user message."""
    numbered = [f"[{number}] {passage}" for number, passage in enumerate(passages, 1)]
    return [{"role": "user", "content": "\n\n".join([TASK, *numbered, f"Question: {question}"])}]


def num_tokens(prompt: list[dict[str, str]], tokenizer: Any) -> int:
    """Tokens of the prompt, rendered up to where the response begins."""
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])


def lengthen(own: list[str], question: str, others: Iterator[str], target: int, tokenizer: Any) -> list[str]:
    """The question's own passages followed by as many others, the last cut at a word, as fit in `target` tokens."""

    def fit(passages: list[str]) -> bool:
        return num_tokens(prompt_of(passages, question), tokenizer) <= target

    passages = list(own)
    for other in others:
        if fit([*passages, other]):
            passages.append(other)
            continue
        words = other.split(" ")
        low, high = 0, len(words)  # invariant: `low` words fit, `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fit([*passages, " ".join(words[:middle])]) else (low, middle)
        return [*passages, " ".join(words[:low])] if low else passages
    return passages


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--source", type=Path, required=True)
    options.add_argument("--model", type=Path, required=True, help="folder of the tokenizer")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--tokens", type=int, default=1500, help="of each prompt")
    options.add_argument("--num-groups", type=int, default=0, help="0: all")
    args = options.parse_args()

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
    with args.source.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    parsed = [parse(row) for row in rows]
    counts = {"groups": 0, "tied": 0, "other_form": 0, "too_long": 0}
    lengths = []
    with args.out.open("w", encoding="utf-8") as out:
        for index, (row, found) in enumerate(zip(rows, parsed, strict=True)):
            if found is None:
                counts["other_form"] += 1
                continue
            ranked = sorted(row["responses"], key=lambda response: -response["scores"]["wins"])
            if len({response["scores"]["wins"] for response in ranked}) < len(ranked):
                counts["tied"] += 1
                continue
            passages, question = found
            if num_tokens(prompt_of(passages, question), tokenizer) > args.tokens:
                counts["too_long"] += 1
                continue
            later = [other for other in parsed[index + 1 :] + parsed[:index] if other is not None]
            others = (passage for other in later for passage in other[0])
            prompt = prompt_of(lengthen(passages, question, others, args.tokens, tokenizer), question)
            lengths.append(num_tokens(prompt, tokenizer))
            texts = [response["text"] for response in ranked]
            out.write(json.dumps({"id": row["id"], "prompt": prompt, "responses": texts}, ensure_ascii=False) + "\n")
            counts["groups"] += 1
            if counts["groups"] == args.num_groups:
                break
    if not lengths:
        print(f"{args.source}: no group without ties in the form asked for; see --help", file=sys.stderr)
        raise SystemExit(2)
    print(json.dumps({**counts, "min_prompt_tokens": min(lengths), "max_prompt_tokens": max(lengths)}))


if __name__ == "__main__":
    main()
