"""Prompts and answers cut out of texts and conversations, in the shapes that preference data comes in."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from assay.records import Message, Response, reply
from assay.settings import nearest

Note = Callable[[str], None]
"""Counts something that was understood or changed on the way in."""

TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}
PARSED = "Human/Assistant transcript parsed into messages"
REPEATED = "prompt repeated in the answers taken out of them"
COMMON = "prompt taken from what the answers begin with in common"
NO_COMMON = "answers without a common beginning given an empty prompt"
AS_USER = "prompt text before message answers taken as a user message"

# Where the common beginning of two texts may end, best first: after a line, after a sentence, before a space.
BOUNDARIES = (re.compile(r"\n"), re.compile(r"(?<=[.!?:])(?=\s)"), re.compile(r"(?=\s)"))


class BadRow(Exception):
    """A row that cannot be used: the reason it is counted under, and what is wrong."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def content(value: Any, column: str) -> str | Response:
    """A column's text, or its messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return tuple(_message(item, f"{column}[{index}]") for index, item in enumerate(value))
    raise BadRow("wrong type", f"{column} must be text or a list of messages; got {type(value).__name__}")


def _message(item: Any, where: str) -> Message:
    if isinstance(item, dict) and isinstance(item.get("content"), list):
        item = {**item, "content": _parts(item["content"], where)}
    try:
        return Message.from_json(item)
    except ValueError as error:
        got = f" (it has {', '.join(map(repr, item))})" if isinstance(item, dict) and "role" not in item else ""
        raise BadRow("wrong type", f"{where}: {error}{got}") from error


def _parts(parts: list[Any], where: str) -> str:
    """The text of a content list such as [{"type": "text", "text": ...}]."""
    if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    raise BadRow("not text", f"{where}: its content holds more than text, and only text is read")


def transcript(text: str) -> tuple[Response, bool] | None:
    """A text of "Human: ... Assistant: ..." turns as messages; None when the text is not one.

    The flag says whether it ends in an open assistant turn, as a prompt does. Format: Bai et al. 2022,
    arXiv:2204.05862, the HH-RLHF data.
    """
    pieces = TRANSCRIPT_TURN.split("\n\n" + text.lstrip("\n"))
    if pieces[0] or pieces[1:2] != ["Human"] or "Assistant" not in pieces[1::2]:
        return None
    speakers, texts = pieces[1::2], [piece.strip() for piece in pieces[2::2]]
    turns = tuple(
        Message(TRANSCRIPT_ROLES[who], what)  # pyright: ignore[reportArgumentType] checked in Message
        for who, what in zip(speakers, texts, strict=True)
    )
    is_open = turns[-1].role == "assistant" and not turns[-1].content
    return turns, is_open


def prompt_turns(prompt: str | Response, note: Note) -> Response:
    """A prompt's messages: text stays text, unless it is a transcript."""
    if not isinstance(prompt, str):
        return prompt
    found = transcript(prompt)
    if found is None:
        return (Message("text", prompt),)
    note(PARSED)
    turns, is_open = found
    return turns[:-1] if is_open else turns


def with_prompt(
    prompt: str | Response, answers: Sequence[str | Response], note: Note
) -> tuple[Response, list[Response]]:
    """The prompt's messages and each answer's, the prompt having a column of its own."""
    texts = [answer for answer in answers if isinstance(answer, str)]
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise BadRow("empty prompt", "the prompt is empty")
    if len(texts) == len(answers):
        return _text_answers(prompt, texts, note)
    conversations = [answer for answer in answers if not isinstance(answer, str)]
    if len(conversations) != len(answers):
        raise BadRow("wrong type", "one answer is text and the other a list of messages: make both the same")
    if isinstance(prompt, str):
        return _text_prompt(prompt, conversations, note)
    if all(len(turns) > len(prompt) and turns[: len(prompt)] == prompt for turns in conversations):
        note(REPEATED)
        return prompt, [turns[len(prompt) :] for turns in conversations]
    return prompt, conversations


def _text_answers(prompt: str | Response, texts: list[str], note: Note) -> tuple[Response, list[Response]]:
    turns = prompt_turns(prompt, note)
    if not isinstance(prompt, str):
        return turns, [reply(text) for text in texts]
    if turns[0].role == "text":
        return turns, [reply(text, plain=True) for text in texts]
    if all(text.startswith(prompt) for text in texts):
        note(REPEATED)
        texts = [text.removeprefix(prompt) for text in texts]
    return turns, [reply(text.strip()) for text in texts]


def _text_prompt(prompt: str, conversations: list[Response], note: Note) -> tuple[Response, list[Response]]:
    if all(turns and turns[0].role == "assistant" for turns in conversations):
        note(AS_USER)
        return (Message("user", prompt),), conversations
    shared, answers = split_turns(conversations)
    if shared and shared[-1].content.strip() == prompt.strip():
        note(REPEATED)
        return shared, answers
    raise BadRow("no common prompt", "the prompt column is not the last turn before the answers: drop one of the two")


def without_prompt(chosen: str | Response, rejected: str | Response, note: Note) -> tuple[Response, list[Response]]:
    """The prompt that two answers begin with in common (the field's implicit prompt), and the rest of each."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        first, second = transcript(chosen), transcript(rejected)
        if first is None or second is None:
            prompt, texts = split_text(chosen, rejected)
            note(COMMON if prompt else NO_COMMON)
            turns = (Message("text", prompt),) if prompt else ()
            return turns, [reply(text, plain=True) for text in texts]
        note(PARSED)
        chosen, rejected = first[0], second[0]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("wrong type", "one answer is text and the other a list of messages: make both the same")
    turns, answers = split_turns([chosen, rejected])
    note(COMMON if turns else NO_COMMON)
    return turns, answers


def split_turns(conversations: Sequence[Response]) -> tuple[Response, list[Response]]:
    """The messages that all begin with, cut back to where each goes on with an assistant turn, and the rest."""
    if not all(conversations):
        raise BadRow("empty answer", "an answer is an empty list of messages")
    first = conversations[0]
    length = 0
    while all(len(turns) > length + 1 and turns[length] == first[length] for turns in conversations):
        length += 1
    while length > 0 and any(turns[length].role != "assistant" for turns in conversations):
        length -= 1
    if any(turns[length].role != "assistant" for turns in conversations):
        raise BadRow("no common prompt", "the answers do not begin with the same prompt before an assistant turn")
    return first[:length], [turns[length:] for turns in conversations]


def split_text(chosen: str, rejected: str) -> tuple[str, list[str]]:
    """The text that both begin with, cut back to a boundary, and the rest of each, which is never blank.

    Nothing tells a common answer's start from a prompt's end, so the cut is at the last whole line they share, else
    the last sentence, else the last word.
    """
    shorter = min(len(chosen), len(rejected))
    common = next((index for index in range(shorter) if chosen[index] != rejected[index]), shorter)
    for boundary in BOUNDARIES:
        for found in reversed([*boundary.finditer(chosen, 0, common + 1)]):
            cut = found.end()
            if 0 < cut <= common and chosen[cut:].strip() and rejected[cut:].strip() and chosen[:cut].strip():
                return chosen[:cut], [chosen[cut:], rejected[cut:]]
    return "", [chosen, rejected]


def need(row: dict[str, Any], *names: str) -> Any:
    """The value of the first of these columns that is there."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    null = next((name for name in names if name in row), None)
    if null:
        raise BadRow("missing column", f"column {null!r} is null")
    has = ", ".join(map(repr, row)) or "none"
    hint = next((found for name in names if (found := nearest(name, row))), "")
    raise BadRow("missing column", f"no column {' or '.join(map(repr, names))}; it has {has}.{hint}")
