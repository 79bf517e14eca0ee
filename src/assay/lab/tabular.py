"""Tables in a language model's place: what the learner trains when the world is small enough to enumerate.

`TabularModel` takes batches and returns columns exactly as `assay.engine.model.Model` does, so losses, algorithms, the
learner, the optimiser and the loop are those that train language models.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from assay.batch import ModelOutput, TokenBatch, Trunks, VocabularyFn
from assay.engine.truncation import cut, unpack_bits
from assay.lab.world import World, number_of, states_before


class TabularModel(nn.Module):
    """A softmax policy, values and rewards as tables; or rewards linear in `features` [C, O, D].

    logits [C, S, V] start at the reference; values [C, S] and rewards [C, O] (or weights [D]) at 0.
    """

    shares_prompts = True
    adapter = None
    temperature = 1.0

    def __init__(self, world: World, *, features: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.world = world
        self.features = features
        self.logits = nn.Parameter(world.reference.to(dtype, copy=True))
        self.state_values = nn.Parameter(torch.zeros(self.logits.shape[:2], dtype=dtype))
        shape = world.oracle.shape if features is None else features.shape[-1:]
        self.reward_weights = nn.Parameter(torch.zeros(shape, dtype=dtype))
        self.num_tokens = 0

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.logits.device

    @property
    def policy(self) -> Tensor:
        """[C, S, V] next-token log-probabilities, fp64."""
        return self.logits.detach().double().log_softmax(-1)

    @property
    def probabilities(self) -> Tensor:
        """[C, O] of whole responses, fp64."""
        return self.world.sequence_logprobs(self.policy).exp()

    @property
    def rewards(self) -> Tensor:
        """[C, O] the rewards as they stand."""
        return self.reward_weights if self.features is None else self.features @ self.reward_weights

    def forward(
        self,
        batch: TokenBatch,
        reads: Iterable[str],
        vocabulary: Mapping[str, VocabularyFn] | None = None,
        columns: Mapping[str, Tensor] | None = None,
    ) -> ModelOutput:
        """As `assay.engine.model.Model`."""
        wanted = set(reads)
        self.num_tokens = batch.ids.numel()
        context = torch.tensor([int(ids[0]) for ids in batch.prompts.ids])[batch.group]
        states = states_before(batch.ids, self.world.vocabulary)
        rows = context[:, None].expand_as(states)
        found: dict[str, Any] = {}
        if wanted & {"logprobs", "entropy"} or vocabulary:
            logits = self.logits[rows, states]
            keep = unpack_bits(batch.allowed, logits.shape[-1]) if "allowed" in batch else None
            logprobs = (logits if keep is None else cut(logits, keep)).log_softmax(-1)
            if "logprobs" in wanted:
                found["logprobs"] = logprobs.gather(-1, batch.ids[..., None]).squeeze(-1) * batch.mask
            if "entropy" in wanted:
                here = logprobs > float("-inf")
                finite = torch.where(here, logprobs, 0.0)  # or what cannot be drawn would have a slope of NaN
                found["entropy"] = -(finite.exp() * here * finite).sum(-1) * batch.mask
            if vocabulary:
                given = {"targets": batch.ids.flatten()} | {n: c.flatten() for n, c in (columns or {}).items()}
                found["vocabulary"] = {
                    name: function(logits.flatten(0, 1), given).view_as(batch.ids) * batch.mask
                    for name, function in vocabulary.items()
                }
        if "values" in wanted:
            found["values"] = self.state_values[rows, states]
        if "rewards" in wanted:
            found["rewards"] = self.rewards[context, number_of(batch.ids, self.world.vocabulary)]
        return ModelOutput(**found)


def batch_of(
    world: World, contexts: Tensor, responses: Sequence[int] | Tensor, *, groups_of: int = 0, **columns: Any
) -> TokenBatch:
    """Rows of these contexts [B] and responses [B], as numbers; rows that follow each other share their prompt.

    With `groups_of` so many rows make a group, though the next one's context may be the same.
    """
    contexts, responses = torch.as_tensor(contexts), torch.as_tensor(responses)
    starts = torch.cat([torch.ones(1, dtype=torch.bool), contexts[1:] != contexts[:-1]])
    if groups_of:
        starts = torch.arange(len(contexts)) % groups_of == 0
    group = starts.cumsum(0) - 1
    ids = world.responses[responses]
    return TokenBatch(
        prompts=Trunks(tuple(context[None] for context in contexts[starts])),
        ids=ids,
        mask=torch.ones_like(ids, dtype=torch.bool),
        lengths=torch.full((len(ids),), world.horizon),
        group=group,
        **columns,
    )
