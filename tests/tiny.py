"""A tiny model with the default model's tokenizer and template, an ordinary folder: real files, random weights."""

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.utils import logging

from assay.records import Message, Prompt, Response, reply, user_prompt
from assay.rewards.model import Reward
from assay.tokens.chat import Encoder
from models import default_model

CONTEXT = 256


@functools.cache
def _session() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="assay-tiny-")


@functools.cache
def tokenizer() -> Any:
    """The default model's."""
    return AutoTokenizer.from_pretrained(default_model())


def random_network(kind: type, *, tied: bool = True, seed: int = 0) -> Any:
    """Two layers of width 32, weights large enough that another token, place or mask shows."""
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, tie_word_embeddings=tied,
        **({"num_labels": 1} if kind is LlamaForSequenceClassification else {}),
    )  # fmt: skip
    network = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(0.3 * noise if p.ndim > 1 else p + 0.3 * noise)
        if kind is LlamaForCausalLM:
            network.get_output_embeddings().weight[words.eos_token_id] *= 7  # so that some answers end by themselves
    return network


def save(network: Any, folder: Path) -> str:
    """The folder, with the tokenizer in it."""
    logging.disable_progress_bar()  # it would be among what a test reads from stderr
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@functools.cache
def tiny_model(*, tied: bool = True) -> str:
    """A causal language model's folder, made once a session."""
    folder = Path(_session().name) / f"policy-{tied}"
    return save(random_network(LlamaForCausalLM, tied=tied), folder)


@functools.cache
def tiny_reward() -> str:
    """A sequence classifier's folder, made once a session."""
    return save(random_network(LlamaForSequenceClassification, seed=1), Path(_session().name) / "reward")


class TokenRewards(Reward):
    """Base of rewards at tokens that are made up: the default model's tokenizer, room as the tiny model has."""

    def __init__(self) -> None:
        self.encoder = Encoder(tokenizer())

    @property
    def context(self) -> int:
        """Tokens of a conversation."""
        return CONTEXT


PROMPTS = tuple(
    user_prompt(f"{verb} {what}.")
    for verb in ("Name", "Describe", "Draw", "Forget")
    for what in ("a colour", "two birds of the north", "my house")
)


def pairs(num: int = 12) -> list[dict[str, Any]]:
    """Comparisons in the field's explicit format; answers of many lengths."""
    words = "one two three four five six seven eight nine ten".split()
    return [
        {
            "prompt": [{"role": "user", "content": PROMPTS[i % len(PROMPTS)].messages[0].content}],
            "chosen": [{"role": "assistant", "content": f"Yes, {words[i % 10]} times {i}."}],
            "rejected": [{"role": "assistant", "content": " ".join(words[: 1 + i % 7]) + f" no {i}"}],
        }
        for i in range(num)
    ]


WORDS = ("Red.", "Blue, I would say.", "It depends on the light.", "No.", "Green and a little yellow.")


def asked(place: int) -> list[dict[str, str]]:
    """One of many prompts."""
    return [{"role": "user", "content": f"Name colour number {place}."}]


def ratings(values: tuple[float, ...], num: int = 10) -> list[dict[str, Any]]:
    """One rated answer to each of `num` prompts, the values in turn."""
    return [
        {"prompt": asked(place), "response": WORDS[place % 5], "rating": values[place % len(values)], "id": f"v{place}"}
        for place in range(num)
    ]


def steps(num: int = 12) -> list[dict[str, Any]]:
    """Responses of one to four steps; those that say "no" are wrong."""
    words = ("Yes, one.", "No, two!", "Yes, a third.", "Well, yes.")
    found = []
    for i in range(num):
        told = [words[(i + k * (1 + i % 3)) % 4] for k in range(1 + i % 4)]
        found.append({"prompt": asked(i), "completions": told, "labels": ["No" not in text for text in told]})
    return found


def spans(num: int = 12) -> list[dict[str, Any]]:
    """Responses in which a number is an error of one kind, and a shout of another; some have none."""
    texts = ("It is 12 metres high.", "Look, I KNOW it!", "It may be green.", "NO, about 7 of them.")
    found = []
    for i in range(num):
        text = texts[i % 4]
        told = [(m, "number") for m in re.finditer(r"[0-9]+", text)] + [
            (m, "shout") for m in re.finditer("[A-Z]{2,}", text)
        ]
        marks = [{"start": m.start(), "end": m.end(), "type": name, "text": m.group()} for m, name in told]
        found.append({"prompt": asked(i), "response": text, "spans": marks})
    return found


def demonstrations(num: int = 6) -> list[dict[str, Any]]:
    """Prompts with one answer to imitate."""
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(num)]


def prompts(num: int = 12) -> list[dict[str, Any]]:
    """Prompts alone."""
    return [{"prompt": row["prompt"]} for row in pairs(num)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """A JSONL file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def turns(*told: tuple[str, str]) -> tuple[Message, ...]:
    """Messages from (role, content)."""
    return tuple(Message(role, content) for role, content in told)  # pyright: ignore[reportArgumentType]


TOOL_CALL = Message(
    "assistant", "", {"tool_calls": [{"type": "function", "function": {"name": "sky", "arguments": {"at": "noon"}}}]}
)
CONVERSATIONS: tuple[tuple[Prompt, Response], ...] = (
    (user_prompt("Name a colour."), reply("Blue.")),
    (user_prompt("Name a colour."), reply("A very deep green, like moss in the rain.")),
    (user_prompt("Two lines, please."), reply("First.\n\nSecond, naïve — 🙂")),
    (Prompt(messages=turns(("system", "Be short."), ("user", "Why?"))), reply("Because.")),
    (
        Prompt(messages=turns(("user", "Count."))),
        turns(("assistant", "One."), ("user", "Go on."), ("assistant", "Two, three.")),
    ),
    (Prompt(messages=turns(("user", "What is above?"))), (TOOL_CALL, *turns(("tool", "blue"), ("assistant", "Blue.")))),
    (Prompt(messages=turns(("text", "Once upon a time"))), reply(" there was a fox.", plain=True)),
    (Prompt(messages=()), reply("Just text, without a prompt.", plain=True)),
)  # fmt: skip
