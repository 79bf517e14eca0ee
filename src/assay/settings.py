"""What every configuration is: a frozen dataclass that refuses keys it does not know."""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class Settings:
    """Base of every config dataclass; makes pydantic refuse a key that no field has."""

    __slots__ = ()
    __pydantic_config__: ClassVar = {"extra": "forbid"}


class InputError(ValueError):
    """The user's input is wrong: one clear line, exit code 2.

    The message names the file, line, field or function and says what to do.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the closest known word, '' when none is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""
