"""Rewards at tokens for what a policy sampled: the reward model may cut the text into other tokens than the policy."""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from assay.records import Rollout
from assay.rewards.model import Reward
from assay.tokens.chat import Encoder

WINDOW = 8  # tokens decoded before one, more than a character is ever cut into


def at_sampled_tokens(model: Reward, rollouts: Sequence[Rollout], encoder: Encoder) -> list[Tensor]:
    """[T] for each rollout of one message: the model's reward at each token that the policy, `encoder`, sampled.

    Where tokens differ, a reward goes to the first sampled token that ends where the model's token does, or after it;
    what comes after an answer, the end of sequence and what a template adds, to the last one.
    """
    rewards = model.token_rewards([(rollout.prompt, rollout.response) for rollout in rollouts])
    found: list[Tensor] = []
    for rollout, paid in zip(rollouts, rewards, strict=True):
        places = _places(model, rollout, encoder)
        found.append(torch.zeros(len(rollout.ids)).index_add(0, torch.tensor(places, dtype=torch.long), paid))
    return found


def _places(model: Reward, rollout: Rollout, policy: Encoder) -> list[int]:
    """For each of the model's tokens the place of the policy's that it belongs to."""
    ours, last = rollout.ids, len(rollout.ids) - 1
    theirs = model.encode((rollout.prompt, rollout.response)).ids
    if tuple(theirs[: len(ours)]) == tuple(ours):
        return [min(place, last) for place in range(len(theirs))]
    length, ends = len(rollout.response[0].content), _ends(ours, policy)
    characters = model.encoder.places(rollout.prompt, rollout.response)
    return [last if start >= length else min(bisect_left(ends, end), last) for start, end in characters]


def _ends(ids: Sequence[int], encoder: Encoder) -> list[int]:
    """Where each token's text ends, in characters of the whole text; one that is cut ends with its last token.

    Tokens are decoded with those before them: alone, some lose the space that they begin with.
    """
    ends: list[int] = []
    for place in range(len(ids)):
        first = max(0, place - WINDOW)
        before, upto = (encoder.decode(ids[first:stop]).rstrip("\ufffd") for stop in (place, place + 1))
        ends.append((ends[-1] if ends else 0) + len(upto) - len(before))
    return ends
