"""Train and held-out records that share no prompt."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from assay.records import Comparison, Feedback, Prompt, Ranking, stable_id
from assay.settings import InputError

R = TypeVar("R", bound=Feedback)


def prompt_key(record: Feedback) -> str:
    """What must stay on one side: the prompt's words, whatever their case, spacing, tools or id.

    Records without a prompt are their own key, so plain texts split one by one.
    """
    prompt = record if isinstance(record, Prompt) else record.prompt
    if prompt.messages:
        return stable_id([(message.role, " ".join(message.content.casefold().split())) for message in prompt.messages])
    if isinstance(record, Comparison | Ranking):
        return stable_id(sorted(stable_id(response) for response in record.responses))
    return record.id if isinstance(record, Prompt) else stable_id(record.response)


def split_by_prompt(
    records: Iterable[R], *, held_out: int | float, seed: int = 0, called: str = "held_out"
) -> tuple[tuple[R, ...], tuple[R, ...]]:
    """(train, held out), each in the order given; no prompt is on both sides.

    `held_out` is a share of the prompts (0 < float < 1) or a number of PROMPTS (int), not of records; `called` is what
    errors call it. Sides follow from a hash of prompt and seed: the order of records does not matter. Added records
    never move a prompt when `held_out` is a share, which is then met only on average; a number is met exactly, and
    additions may displace some.
    """
    records = tuple(records)
    places = {key: _place(key, seed) for key in map(prompt_key, records)}
    chosen = _chosen(places, held_out, called)
    train = tuple(record for record in records if prompt_key(record) not in chosen)
    rest = tuple(record for record in records if prompt_key(record) in chosen)
    if not train or (held_out and not rest):
        side = "train on" if not train else "hold out"
        raise InputError(f"{called}={held_out} of {len(places)} prompts leaves none to {side}: use a number of prompts")
    return train, rest


def _place(key: str, seed: int) -> float:
    """Where a prompt falls in [0, 1)."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _chosen(places: dict[str, float], held_out: int | float, called: str) -> set[str]:
    if isinstance(held_out, bool) or not isinstance(held_out, int | float):
        raise InputError(f"{called} must be a number of prompts or a share of them; got {held_out!r}")
    if isinstance(held_out, int):
        if not 0 <= held_out < max(len(places), 1):
            raise InputError(f"{called}={held_out} prompts, but the data has {len(places)}")
        return set(sorted(places, key=lambda key: (places[key], key))[:held_out])
    if not 0 <= held_out < 1:
        raise InputError(f"{called}={held_out} as a share must lie in [0, 1); for a number of prompts give an int")
    return {key for key, place in places.items() if place < held_out}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """What two sets share. Counts are of test records; each is counted under every heading it falls under."""

    prompts: int  # the prompt occurs in train too
    answers: int  # an answer of a test record occurs in train, to any prompt
    continuations: int  # the prompt continues, or is continued by, a conversation of train
    examples: tuple[str, ...]  # ids of the first ten such test records

    def __bool__(self) -> bool:
        return bool(self.prompts)

    def __str__(self) -> str:
        return (
            f"{self.prompts:,} test records share their prompt with train, {self.answers:,} an answer, "
            f"{self.continuations:,} a conversation"
        )


def leaks(train: Sequence[R], test: Sequence[R]) -> Leaks:
    """What of `test` was seen in `train`, text compared without case and spacing; true when a prompt is shared.

    Shared answers and continued conversations are told but not counted as a leak: "I don't know." answers much.
    """
    keys, answers = {prompt_key(record) for record in train}, {key for record in train for key in _answers(record)}
    openings = {key for record in train for key in _openings(record)}
    ends = {_opening(record, None) for record in train}
    counts, examples = [0, 0, 0], []
    for record in test:
        found = (
            prompt_key(record) in keys,
            bool(answers & _answers(record)),
            _opening(record, None) in openings or bool(ends & _openings(record)),
        )
        counts = [count + hit for count, hit in zip(counts, found, strict=True)]
        if any(found) and len(examples) < 10:
            examples.append(record.id)
    return Leaks(prompts=counts[0], answers=counts[1], continuations=counts[2], examples=tuple(examples))


def _answers(record: Feedback) -> set[str]:
    if isinstance(record, Comparison | Ranking):
        return {stable_id(response) for response in record.responses}
    return set() if isinstance(record, Prompt) else {stable_id(record.response)}


def _opening(record: Feedback, turns: int | None) -> str:
    prompt = record if isinstance(record, Prompt) else record.prompt
    if not prompt.messages:
        return prompt_key(record)
    return prompt_key(Prompt(messages=prompt.messages[:turns]))


def _openings(record: Feedback) -> set[str]:
    """The keys of the shorter prompts that this prompt continues."""
    prompt = record if isinstance(record, Prompt) else record.prompt
    return {
        _opening(record, turns) for turns in range(1, len(prompt.messages)) if prompt.messages[turns - 1].role == "user"
    }
