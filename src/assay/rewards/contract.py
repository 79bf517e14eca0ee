"""The proof that a saved reward model means the same elsewhere: plain transformers gives its rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from assay.records import Prompt, Response
from assay.rewards.model import RewardModel
from assay.settings import InputError

TOLERANCE = 1e-4  # fp32 rewards


def verify(folder: Path, conversations: Sequence[tuple[Prompt, Response]]) -> str:
    """Reload `folder` through plain transformers and compare, for batches of one and many and both paddings.

    Returns a sentence with the largest difference; raises InputError above 1e-4 times the rewards' size.
    """
    ours = RewardModel.from_pretrained(str(folder), dtype="float32").score(conversations)
    scale = max(1.0, *(abs(reward) for reward in ours))
    worst = 0.0
    for size in (1, len(conversations)):
        for side in ("right", "left") if size > 1 and _is_rotary(folder) else ("right",):
            theirs = plain_rewards(folder, conversations, batch_size=size, padding_side=side)
            worst = max(worst, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
    if worst > TOLERANCE * scale:
        raise InputError(
            f"{folder}: plain transformers gives rewards that differ by {worst:.2g} from ours; do not publish it"
        )
    return f"verified: plain transformers gives the saved model's rewards, largest difference {worst:.1e}"


@torch.no_grad()
def plain_rewards(
    folder: Path, conversations: Sequence[tuple[Prompt, Response]], *, batch_size: int, padding_side: str
) -> list[float]:
    """Rewards as a user without this package would compute them, in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    rewards: list[float] = []
    for first in range(0, len(conversations), batch_size):
        rows = [_ids(tokenizer, *conversation) for conversation in conversations[first : first + batch_size]]
        inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        rewards += model(**inputs).logits[:, 0].tolist()
    return rewards


def _ids(tokenizer: Any, prompt: Prompt, response: Response) -> list[int]:
    """Ids of one whole conversation: through the chat template, or plain text and the end-of-sequence token."""
    messages = [message.to_json() for message in (*prompt.messages, *response)]
    if all(message["role"] == "text" for message in messages):
        return tokenizer("".join(message["content"] for message in messages) + tokenizer.eos_token)["input_ids"]
    tools = [dict(tool) for tool in prompt.tools] or None
    return tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, **prompt.template_kwargs)["input_ids"]


def _is_rotary(folder: Path) -> bool:
    """Whether positions are relative, so that padding on the left changes nothing."""
    return "rope" in (folder / "config.json").read_text()
