"""Rewards that can be checked: the answer is there, or a pattern matches. --rules assay.rewards.verifiable:exact_match

What is looked for stands in a column of the prompts. No torch.
"""

import re
from collections.abc import Sequence
from typing import Any

from assay.rewards.rules import Text
from assay.settings import InputError

SIGN = r"(?:(?<![\w)])-)?"
NUMBER = re.compile(rf"{SIGN}(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|{SIGN}(?<!\d)\.\d+")


def exact_match(responses: Sequence[Text], answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the response is the prompt's `answer`, spaces around either left out."""
    _check_given("exact_match", "answer", answer)
    return [float(said_in(text) == str(wanted).strip()) for text, wanted in zip(responses, answer, strict=True)]


def last_number(responses: Sequence[Text], answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the last number in the response equals the prompt's `answer`, a number.

    A hyphen after a letter or digit is no sign ("12-15"), and a comma parts thousands only ("1,204", but "1,2" is two).
    """
    _check_given("last_number", "answer", answer)
    found: list[float] = []
    for text, wanted in zip(responses, answer, strict=True):
        numbers = NUMBER.findall(said_in(text))
        try:
            target = float(str(wanted).replace(",", ""))
        except ValueError:
            raise InputError(f"last_number: the column `answer` must hold numbers; got {wanted!r}") from None
        found.append(float(bool(numbers) and float(numbers[-1].replace(",", "")) == target))
    return found


def matches(responses: Sequence[Text], pattern: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the prompt's `pattern`, a regular expression, is found in the response."""
    _check_given("matches", "pattern", pattern)
    found: list[float] = []
    for text, wanted in zip(responses, pattern, strict=True):
        try:
            found.append(float(re.search(str(wanted), said_in(text), re.DOTALL) is not None))
        except re.error as error:
            raise InputError(
                f"matches: the column `pattern` holds {wanted!r}, no regular expression: {error}"
            ) from None
    return found


def _check_given(function: str, column: str, values: Sequence[Any]) -> None:
    """Raises InputError where a prompt lacks what is looked for."""
    if num := sum(value is None for value in values):
        raise InputError(f"{function}: {num} of {len(values)} prompts have no `{column}`: fill that column of the data")


def said_in(text: Text) -> str:
    """What the assistant said last, spaces around it left out."""
    return (text if isinstance(text, str) else str(text[-1]["content"])).strip()
