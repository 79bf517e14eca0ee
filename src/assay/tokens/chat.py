"""From conversations to token ids and masks. Templates are the tokenizer's own; nothing is ever cut silently.

A prompt and its answer are rendered together and split where the prompt's ids end, so that the ids are those of the
whole text. Where a tokenizer or template merges across that place, the answer goes without a shared prompt.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from assay.batch import TokenBatch, Trunks
from assay.records import Message, Prompt, Response
from assay.settings import InputError


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation: the prompt's ids, the answer's ids, and which of those the assistant wrote.

    `shared` tells whether `trunk` is the prompt; if not, it is empty and `ids` holds the whole conversation.
    """

    trunk: tuple[int, ...]
    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    shared: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole conversation."""
        return len(self.trunk) + len(self.ids)


class SpecialText(InputError):
    """A text that spells out a special token: its ids would say something else than it."""


class Encoder:
    """Renders and tokenizes conversations for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self.special = sorted({token.content for token in added if token.special} | set(tokenizer.all_special_tokens))

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids after which a policy starts to write."""
        if prompt.is_text:
            return self._ids(_plain(prompt.messages), special=True)
        return self._ids(self._render(prompt, (), generate=True))

    def conversation(self, prompt: Prompt, response: Response) -> Encoded:
        """The whole rendered conversation, what the template puts after the answer included: for reward models."""
        return self._encode(prompt, response)

    def completion(self, prompt: Prompt, response: Response) -> Encoded:
        """The conversation up to the end-of-sequence token that closes the answer: for policies.

        What a template adds after that token is not something a policy ever writes.
        """
        whole = self._encode(prompt, response)
        stop = self._close(whole.ids)
        return Encoded(whole.trunk, whole.ids[:stop], whole.mask[:stop], whole.shared)

    def suffix(self, prompt: Prompt) -> tuple[int, ...]:
        """What the template adds to a sampled answer after its end-of-sequence token (SmolLM2: a newline)."""
        if prompt.is_text:
            return ()
        ids = self._encode(prompt, (Message("assistant", "x"),)).ids
        return ids[self._close(ids) :]

    def between(self, prompt: Prompt, response: Response, more: Response) -> tuple[int, ...]:
        """What follows the end-of-sequence token of a turn, `response` so far, up to where a policy writes again.

        That is what the template adds, the messages `more` that somebody else said, and the start of a turn. Raises
        InputError where the template writes earlier turns anew.
        """
        before = self._render(prompt, response)
        after = self._render(prompt, (*response, *more), generate=True)
        if prompt.is_text or not after.startswith(before):
            raise InputError(
                f"prompt {prompt.id}: the chat template does not go on where a turn ended: no several turns; "
                f"it renders {_shown(before)}, and then {_shown(after)}"
            )
        return (*self.suffix(prompt), *self._ids(after[len(before) :]))

    def places(self, prompt: Prompt, response: Response) -> tuple[tuple[int, int], ...]:
        """Which characters of a single-message response each of its ids stands for; outside of 0 to its length: none.

        Ids are those of `conversation`.
        """
        content = response[0].content
        if not prompt.messages or prompt.is_text:
            before = _plain(prompt.messages)
            found, start = self._offsets(before + content, special=True), len(before)
            found.append((start + len(content), start + len(content)))  # the end of sequence
        else:
            text = self._render(prompt, response)
            turn, _ = self._turn(self._render(prompt, (), generate=True), text, content.strip())
            start = text.find(content.strip(), turn) - (len(content) - len(content.lstrip()))
            found = self._offsets(text)
        num = len(self.conversation(prompt, response).ids)
        return tuple((first - start, last - start) for first, last in found[len(found) - num :])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of sampled ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def spoken(self, ids: Iterable[int]) -> str:
        """What a policy's answer says: its text up to where it spells out a special token.

        A policy that spells the end of its turn and a grateful user after it, in ordinary tokens, would otherwise have
        them read as real when its answer is scored.
        """
        text = self.decode(ids).replace("\0", "")  # which no file of records can carry
        return text[: min((text.find(word) for word in self.special if word in text), default=len(text))]

    def fingerprint(self) -> dict[str, Any]:
        """What must stay the same between training a model and using it."""
        probe = "The quick brown fox, 1234 — naïve café.\n\n  x"
        template = self.tokenizer.chat_template
        text = json.dumps(template) if template is not None and not isinstance(template, str) else template or ""
        return {
            "template": hashlib.sha256(text.encode()).hexdigest()[:16],
            "tokens": hashlib.sha256(json.dumps(self.tokenizer(probe)["input_ids"]).encode()).hexdigest()[:16],
            "vocabulary": len(self.tokenizer),
            "words": hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()).hexdigest()[:16],
            "bos": self.tokenizer.bos_token_id,
            "eos": self.tokenizer.eos_token_id,
            "pad": self.tokenizer.pad_token_id,
        }

    def other_ids(self, other: "Encoder") -> list[str]:
        """The parts of the fingerprint by which ids mean other words to another tokenizer; empty where they do not."""
        ours, theirs = self.fingerprint(), other.fingerprint()
        return [part for part in ("tokens", "vocabulary", "words", "eos") if ours[part] != theirs[part]]

    def _encode(self, prompt: Prompt, response: Response) -> Encoded:
        if not prompt.messages or prompt.is_text:
            return self._encode_text(prompt, response)
        before = self._render(prompt, (), generate=True)
        text = self._render(prompt, response)
        trunk, ids = self._ids(before), self._ids(text)
        if ids[: len(trunk)] == trunk and len(ids) > len(trunk):
            mask = self._mask(prompt, response, text, len(trunk))
            return Encoded(trunk, ids[len(trunk) :], mask)
        return Encoded((), ids, self._mask(prompt, response, text, 0), shared=False)

    def _encode_text(self, prompt: Prompt, response: Response) -> Encoded:
        if any(message.role != "text" for message in response):
            if prompt.messages:
                raise InputError(f"prompt {prompt.id}: a plain-text prompt needs plain-text responses")
            ids = self._ids(self._render(prompt, response))
            return Encoded((), ids, self._mask(prompt, response, self._render(prompt, response), 0))
        before = _plain(prompt.messages)
        trunk = self._ids(before, special=True) if before else ()
        ids = (*self._ids(before + _plain(response), special=True), self.eos)
        if ids[: len(trunk)] == trunk:
            return Encoded(trunk, ids[len(trunk) :], (True,) * (len(ids) - len(trunk)))
        written = self._spans([(len(before), len(before + _plain(response)))], before + _plain(response), special=True)
        return Encoded((), ids, (*written, True), shared=False)

    def _mask(self, prompt: Prompt, response: Response, text: str, skip: int) -> tuple[bool, ...]:
        """True on the tokens of assistant turns, found by rendering turn by turn; after `skip` tokens."""
        if len(response) == 1 and skip:
            ids = self._ids(text)[skip:]
            stop = self._close(ids)
            return (True,) * stop + (False,) * (len(ids) - stop)
        spans: list[tuple[int, int]] = []
        for index, message in enumerate(response):
            if message.role != "assistant":
                continue
            alone = not prompt.messages and not index  # templates refuse a conversation without messages
            before = "" if alone else self._render(prompt, response[:index], generate=True)
            written = self._render(prompt, response[: index + 1])
            if not text.startswith(written):
                raise InputError(
                    f"prompt {prompt.id}: the chat template renders earlier turns differently once later ones follow, "
                    f"so what the assistant wrote cannot be told apart; split the conversation into one turn each; "
                    f"it renders {_shown(written)}, and with what follows {_shown(text)}"
                )
            spans.append(self._turn(before, written, message.content.strip()))
        return self._spans(spans, text)[skip:]

    def _close(self, ids: Sequence[int]) -> int:
        """How many ids there are up to the end of sequence that closes an answer; all, if something else closes it."""
        ends = [index for index, token in enumerate(ids) if token == self.eos]
        return ends[-1] + 1 if ends and not self.decode(ids[ends[-1] + 1 :]).strip() else len(ids)

    def _turn(self, before: str, written: str, content: str) -> tuple[int, int]:
        """Where the last turn of `written` begins and ends, in characters, its end of sequence included.

        Some templates open an answer with more than stays, or differently once something precedes it; then the turn
        is found by its content.
        """
        last = written.rfind(self.tokenizer.eos_token)
        end = last + len(self.tokenizer.eos_token)
        if last < 0 or written[end:].strip():
            last = end = len(written)
        if before and written.startswith(before):
            return len(before), end
        start = written.rfind(content, 0, last) if content else -1
        if start < 0:
            start = next((i for i, (a, b) in enumerate(zip(before, written, strict=False)) if a != b), last)
        return start, end

    def _spans(self, spans: list[tuple[int, int]], text: str, *, special: bool = False) -> tuple[bool, ...]:
        """True on tokens that overlap a span: one that merges prompt and answer carries words of the answer."""
        return tuple(
            any(start < b and end > a for a, b in spans) for start, end in self._offsets(text, special=special)
        )

    def _offsets(self, text: str, *, special: bool = False) -> list[tuple[int, int]]:
        """The characters that each token stands for."""
        return self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]

    def _ids(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _render(self, prompt: Prompt, response: Response, *, generate: bool = False) -> str:
        if self.tokenizer.chat_template is None:
            raise InputError(
                "the tokenizer has no chat template, and the data are messages: give a model with one, or plain text"
            )
        for message in (*prompt.messages, *response):
            if found := next((word for word in self.special if word in message.content), None):
                raise SpecialText(
                    f"prompt {prompt.id}: the {message.role}'s text contains {found}, which the tokenizer reads as a "
                    f"special token; take it out of the data"
                )
        text = self._apply(prompt, (*prompt.messages, *response), generate)
        for index, message in enumerate(() if response else prompt.messages):
            if message.content.strip() in text:
                continue
            other = replace(message, content=message.content + " And more.")
            changed = (*prompt.messages[:index], other, *prompt.messages[index + 1 :])
            if self._apply(prompt, changed, generate) == text:
                raise InputError(
                    f"prompt {prompt.id}: the chat template leaves out what the {message.role} says; it renders "
                    f"{_shown(text)}; take it out of the data, or give a model whose template has a place for it"
                )
        return text

    def _apply(self, prompt: Prompt, messages: Sequence[Message], generate: bool) -> str:
        told = {**prompt.template_kwargs, "tokenize": False, "add_generation_prompt": generate}
        tools = [dict(tool) for tool in prompt.tools] or None
        try:
            return self.tokenizer.apply_chat_template([message.to_json() for message in messages], tools=tools, **told)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"prompt {prompt.id}: the chat template refuses it: {error}") from error


def _shown(text: str) -> str:
    """A rendered text for a message: quoted, its middle left out where it is long."""
    return repr(text if len(text) <= 400 else f"{text[:200]} [...] {text[-200:]}")


def _plain(messages: Sequence[Message]) -> str:
    return "".join(message.content for message in messages)


def collate(groups: Sequence[Sequence[Encoded]], pad: int) -> TokenBatch:
    """Right-padded rows, one trunk a group. Unshared conversations get a trunk of their own, which is empty."""
    trunks: list[Tensor] = []
    place: dict[tuple[int, tuple[int, ...]], int] = {}
    rows: list[tuple[Encoded, int]] = []
    for number, group in enumerate(groups):
        for encoded in group:
            key = (number, encoded.trunk)
            if key not in place:
                place[key] = len(trunks)
                trunks.append(torch.tensor(encoded.trunk, dtype=torch.long))
            rows.append((encoded, place[key]))
    lengths = torch.tensor([len(encoded.ids) for encoded, _ in rows])
    width = int(lengths.max()) if rows else 0
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (encoded, _) in enumerate(rows):
        ids[row, : len(encoded.ids)] = torch.tensor(encoded.ids, dtype=torch.long)
        mask[row, : len(encoded.ids)] = torch.tensor(encoded.mask, dtype=torch.bool)
        if not encoded.trunk and width:
            mask[row, 0] = False  # nothing comes before it, so it has no log-probability
    group = torch.tensor([trunk for _, trunk in rows])
    return TokenBatch(prompts=Trunks(tuple(trunks)), ids=ids, mask=mask, lengths=lengths, group=group)
