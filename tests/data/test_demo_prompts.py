"""The demo's prompts: enough, short, all different, splits apart, ids that follow from the text."""

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

import assay.data
from assay.data import demo_prompts
from assay.records import user_prompt
from assay.settings import InputError

FILE = Path(assay.data.__file__).with_name("demo_prompts.jsonl")
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def tokens(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second)


def near_duplicates(texts: list[str], limit: float) -> list[tuple[str, str]]:
    pairs = combinations([(text, tokens(text)) for text in texts], 2)
    return [(one, two) for (one, first), (two, second) in pairs if jaccard(first, second) >= limit]


def test_near_duplicates_are_found_at_the_limit():
    # 7 shared of 10 tokens is 0.7; 2 shared of 4 is 0.5; case and punctuation do not count.
    at_limit = ["a b c d e f g h i j", "A, B, C, D, E, F, G!"]
    assert near_duplicates(at_limit, 0.7) == [("a b c d e f g h i j", "A, B, C, D, E, F, G!")]
    assert near_duplicates(["x y z", "y z w"], 0.7) == []
    assert near_duplicates(["x y z", "y z w"], 0.5) == [("x y z", "y z w")]


def test_no_prompt_repeats_another():
    texts = [row["prompt"] for row in ROWS]
    assert len({text.casefold() for text in texts}) == len(texts)
    assert near_duplicates(texts, 0.7) == []


def test_every_line_is_whole():
    for number, row in enumerate(ROWS, 1):
        text = row["prompt"]
        assert list(row) == ["id", "split", "topic", "prompt"], number
        assert row["split"] in ("train", "held_out"), number
        assert 4 <= len(text.split()) <= 25, (number, text)
        assert text.isascii() and text == " ".join(text.split()), (number, text)
        assert row["topic"] == row["topic"].strip() != "", number


def test_ids_follow_from_the_text_alone():
    assert all(row["id"] == user_prompt(row["prompt"]).id for row in ROWS)
    assert all(re.fullmatch("[0-9a-f]{12}", row["id"]) for row in ROWS)
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_splits_are_large_apart_and_complete():
    train, held_out = demo_prompts("train"), demo_prompts("held_out")
    assert len(train) >= 660
    assert len(held_out) >= 240
    assert not {prompt.id for prompt in train} & {prompt.id for prompt in held_out}
    assert [prompt.id for prompt in train + held_out] == [row["id"] for row in ROWS]
    assert [prompt.messages[0].content for prompt in train + held_out] == [row["prompt"] for row in ROWS]


def test_both_splits_ask_for_the_same_kinds_of_task():
    topics = [{prompt.meta["topic"] for prompt in demo_prompts(split)} for split in ("train", "held_out")]
    assert topics[0] == topics[1]
    assert len(topics[0]) >= 40


def test_a_prefix_mixes_topics():
    assert all(len({p.meta["topic"] for p in demo_prompts(split)[:64]}) >= 24 for split in ("train", "held_out"))


def test_a_prompt_is_one_user_message_with_its_origin():
    prompt = next(p for p in demo_prompts("train") if p.messages[0].content == "Write a complaint about a cold pizza.")
    assert [message.role for message in prompt.messages] == ["user"]
    assert prompt.meta == {"split": "train", "topic": "complaints"}


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match=r"'train' or 'held_out'; got 'heldout'\. Did you mean 'held_out'\?"):
        demo_prompts("heldout")  # pyright: ignore[reportArgumentType]


def test_reading_prompts_needs_no_torch():
    code = "import sys; from assay.data import demo_prompts; demo_prompts('train'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
