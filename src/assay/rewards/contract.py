"""The proof that a saved reward model means the same elsewhere: plain transformers gives its rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from assay.records import Prompt, Response
from assay.rewards.adapters import AdapterEnsemble, adapter_folders, base_of, plain_members
from assay.rewards.model import Reward, RewardModel
from assay.rewards.opening import open_reward
from assay.settings import InputError

Trained = RewardModel | AdapterEnsemble
TOLERANCE = 1e-4  # of rewards around 1, relative above
ROUNDING = 0.02  # bf16 adapters: the spread that merging alone makes


def verify(folder: Path, conversations: Sequence[tuple[Prompt, Response]], trained: Trained | None = None) -> str:
    """Reload `folder` through plain transformers and compare, for batches of one and many and both paddings.

    With `trained`, the model that was saved, its rewards are compared too, computed in the type it was trained in.
    Returns a sentence with the largest difference between ours and plain transformers; raises InputError above 1e-4,
    and where a reward is no finite number.
    """
    saved = open_reward(str(folder), dtype="float32")
    ours = saved.outputs(conversations)
    if num := int((~ours.isfinite()).sum()):
        raise InputError(f"{folder}: {num} of the {ours.numel()} numbers it gives are not finite; do not use it")
    if trained is not None:
        _compare_trained(folder, conversations, trained)
    scale = max(1.0, float(ours.abs().max()))
    differences: list[Tensor] = []
    for size in (1, len(conversations)):
        for side in ("right", "left") if size > 1 and _is_rotary(folder) else ("right",):
            theirs = plain_outputs(folder, conversations, batch_size=size, padding_side=side, saved=saved)
            differences.append((ours - theirs).abs().max())
    worst = float(torch.stack(differences).max())  # NaN if any is, and then no comparison below holds
    if not worst <= TOLERANCE * scale:
        raise InputError(
            f"{folder}: plain transformers gives rewards that differ by {worst:.2g} from ours; do not publish it"
        )
    return f"verified: plain transformers gives the saved model's rewards, largest difference {worst:.1e}"


def _compare_trained(folder: Path, conversations: Sequence[tuple[Prompt, Response]], trained: Trained) -> None:
    """The saved weights must give, computed as in training, what the trained model gives.

    Adapters merged into rounded weights cannot: there the spread of the differences must be small beside the rewards'.
    """
    learner = trained.learner
    dtype: Any = str(next(learner.model.network.parameters()).dtype).removeprefix("torch.")
    saved = open_reward(str(folder), dtype=dtype, token_budget=learner.token_budget).outputs(conversations)
    errors = saved - trained.outputs(conversations)
    merged = learner.model.adapter is not None and not isinstance(trained, AdapterEnsemble)
    if not merged or dtype == "float32":
        found, bound = float(errors.abs().max()), TOLERANCE * max(1.0, float(saved.abs().max()))
    else:
        found, bound = _spread(errors), max(0.1 * _spread(saved), ROUNDING)
    if not found <= bound:
        raise InputError(
            f"{folder}: the saved model's rewards differ by {found:.2g} from those of the model that was trained "
            f"(allowed: {bound:.2g}); do not use it"
        )


def _spread(outputs: Tensor) -> float:
    """The largest standard deviation of a column."""
    return float(outputs.std(0, correction=0).max())


@torch.no_grad()
def plain_outputs(
    folder: Path,
    conversations: Sequence[tuple[Prompt, Response]],
    *,
    batch_size: int,
    padding_side: str,
    saved: Reward | None = None,
) -> Tensor:
    """[B, L] the numbers as a user without this package would compute them, in fp32.

    Numbers at tokens are pooled as `saved` does it: transformers knows nothing of that. Of an ensemble of adapters each
    is a column, and a network that plain PEFT loads.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
    if adapter_folders(str(folder)):
        members = plain_members(folder)
        return torch.cat([_numbers(network, tokenizer, conversations, batch_size) for network in members], -1)
    pooled = saved if isinstance(saved, RewardModel) and saved.pooling is not None else None
    kind = AutoModelForSequenceClassification if pooled is None else AutoModelForTokenClassification
    return _numbers(kind.from_pretrained(folder, dtype=torch.float32), tokenizer, conversations, batch_size, pooled)


def _numbers(
    network: Any,
    tokenizer: Any,
    conversations: Sequence[tuple[Prompt, Response]],
    batch_size: int,
    pooled: RewardModel | None = None,
) -> Tensor:
    found: list[Tensor] = []
    for first in range(0, len(conversations), batch_size):
        rows = [_ids(tokenizer, *conversation) for conversation in conversations[first : first + batch_size]]
        inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        logits = network.eval()(**inputs).logits
        if pooled is not None:
            logits = _pooled(logits, inputs["attention_mask"], conversations[first : first + batch_size], pooled)
        found.append(logits)
    return torch.cat(found)


def _pooled(
    logits: Tensor, mask: Tensor, conversations: Sequence[tuple[Prompt, Response]], saved: RewardModel
) -> Tensor:
    """[B, L] from logits [B, T, L]: an answer's tokens are the last of its conversation."""
    assert saved.pooling is not None
    found: list[Tensor] = []
    for row, real, conversation in zip(logits, mask.bool(), conversations, strict=True):
        encoded = saved.encode(conversation)
        answer = row[real][-len(encoded.ids) :]
        found.append(saved.pooling.pooled(answer[None], saved.pooling.counted([encoded], saved.encoder, len(answer))))
    return torch.cat(found)


def _ids(tokenizer: Any, prompt: Prompt, response: Response) -> list[int]:
    """Ids of one whole conversation: through the chat template, or plain text and the end-of-sequence token."""
    messages = [message.to_json() for message in (*prompt.messages, *response)]
    if all(message["role"] == "text" for message in messages):
        return tokenizer("".join(message["content"] for message in messages) + tokenizer.eos_token)["input_ids"]
    tools = [dict(tool) for tool in prompt.tools] or None
    return tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, **prompt.template_kwargs)["input_ids"]


def _is_rotary(folder: Path) -> bool:
    """Whether positions are relative, so that padding on the left changes nothing."""
    return "rope" in (base_of(folder) / "config.json").read_text()
