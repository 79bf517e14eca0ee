"""The scored tables that audits read: scoring runs once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from assay.audit.table import ScoredPairs
from assay.records import Comparison, text_of
from assay.rewards.model import Reward
from assay.tokens.chat import Encoded


def score_pairs(reward: Reward, pairs: Sequence[tuple[Comparison, Sequence[Encoded]]]) -> ScoredPairs:
    """Rewards and lengths of encoded pairs, chosen first; a pair about one attribute is judged by that attribute."""
    outputs = reward.outputs_encoded([conversation for _, encoded in pairs for conversation in encoded])
    comparisons = [comparison for comparison, _ in pairs]
    rewards = np.array(of_objective(reward, outputs, [c.objective for c in comparisons for _ in range(2)]).tolist())
    lengths = np.array([[len(text_of(answer)) for answer in (c.chosen, c.rejected)] for c in comparisons])
    return ScoredPairs(
        prompt_id=np.array([c.prompt.id for c in comparisons]),
        reward_chosen=rewards[0::2],
        reward_rejected=rewards[1::2],
        length_chosen=lengths[:, 0],
        length_rejected=lengths[:, 1],
        comparison_id=np.array([c.id for c in comparisons]),
        subset=np.array([str(c.meta.get("subset", c.objective)) for c in comparisons]),
        preference=np.array([max(c.preference, 1 - c.preference) for c in comparisons]),
        annotator=np.array([c.annotator for c in comparisons]),
        **({} if (unsure := of_difference(reward, outputs)) is None else {"uncertainty": np.array(unsure.tolist())}),
    )


def of_difference(reward: Reward, outputs: Tensor) -> Tensor | None:
    """[P] the standard deviation of chosen minus rejected: opinions share what they agree on, so theirs is its own."""
    if reward.readout.kind == "ensemble":
        return (outputs[0::2] - outputs[1::2]).std(-1, correction=1)
    each = reward.readout.uncertainty(outputs)
    return None if each is None else torch.hypot(each[0::2], each[1::2])


def of_objective(reward: Reward, outputs: Tensor, objectives: Sequence[str]) -> Tensor:
    """[B] the reward of each row: its objective's own where the model has an attribute of that name."""
    found = reward.readout.reward(outputs)
    places = {name: place for place, name in enumerate(reward.readout.names)}
    own = torch.tensor([places.get(objective, -1) for objective in objectives])
    return torch.where(own >= 0, outputs.gather(1, own.clamp(min=0)[:, None]).squeeze(1), found)
