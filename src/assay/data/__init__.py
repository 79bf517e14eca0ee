"""Short instructions written for Assay: what the demo trains on, and others it never sees. No torch."""

import json
from importlib.resources import files
from typing import Literal, get_args

from assay.records import Prompt, user_prompt
from assay.settings import InputError, nearest

Split = Literal["train", "held_out"]


def demo_prompts(split: Split) -> tuple[Prompt, ...]:
    """The prompts of one split in the file's order, by id, so that any prefix mixes topics; `meta` has split and topic.

    Raises InputError for a split that does not exist.
    """
    splits = get_args(Split)
    if split not in splits:
        known = " or ".join(map(repr, splits))
        raise InputError(f"demo_prompts: split must be {known}; got {split!r}.{nearest(str(split), splits)}")
    lines = files(__name__).joinpath("demo_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == split]
    return tuple(user_prompt(row["prompt"], id=row["id"], meta={"split": split, "topic": row["topic"]}) for row in rows)
