"""What a world's people say, drawn from a known model of them, as the batches that likelihoods learn from."""

from typing import Any

import torch
from torch import Tensor

from assay.batch import TokenBatch
from assay.lab.tabular import batch_of
from assay.lab.world import World


def pairs(world: World, num: int, generator: torch.Generator, *, temperature: float = 1.0) -> TokenBatch:
    """`num` comparisons of two responses to a context, drawn evenly, the preferred first.

    P(first preferred) = sigmoid((R*(first) - R*(second)) / temperature).
    """
    context = torch.multinomial(world.contexts, num, replacement=True, generator=generator)
    first = torch.randint(world.num_responses, (num,), generator=generator)
    second = (first + torch.randint(1, world.num_responses, (num,), generator=generator)) % world.num_responses
    gap = (world.oracle[context, first] - world.oracle[context, second]) / temperature
    right = torch.rand(num, generator=generator, dtype=torch.float64) < torch.sigmoid(gap)
    return compared(world, context, torch.where(right, first, second), torch.where(right, second, first))


def by_annotators(
    world: World, rewards: Tensor, num: int, generator: torch.Generator, *, order_bias: Tensor | None = None
) -> TokenBatch:
    """`num` comparisons by each of A annotators, whose own rewards [A, C, O] may differ in what and in how much.

    P(first preferred by a) = sigmoid(rewards_a(first) - rewards_a(second) + bias_a), the first being the one that was
    shown first, and `order_bias` [A] 0 unless given. Pairs are drawn evenly; columns `annotator` and `shown_first`.
    """
    annotator = torch.arange(len(rewards)).repeat_interleave(num)
    total = len(annotator)
    context = torch.multinomial(world.contexts, total, replacement=True, generator=generator)
    first = torch.randint(world.num_responses, (total,), generator=generator)
    second = (first + torch.randint(1, world.num_responses, (total,), generator=generator)) % world.num_responses
    gap = rewards[annotator, context, first] - rewards[annotator, context, second]
    bias = 0 if order_bias is None else order_bias[annotator]
    right = torch.rand(total, generator=generator, dtype=torch.float64) < torch.sigmoid(gap + bias)
    batch = compared(world, context, torch.where(right, first, second), torch.where(right, second, first))
    return batch.fill(
        declared={"annotator": Tensor, "shown_first": Tensor},
        annotator=annotator.repeat_interleave(2),
        shown_first=2 * right.double() - 1,
    )


def compared(world: World, contexts: Tensor, chosen: Tensor, rejected: Tensor, **columns: Any) -> TokenBatch:
    """Comparisons [P] as rows 2i (chosen) and 2i + 1 (rejected)."""
    return batch_of(world, contexts.repeat_interleave(2), torch.stack([chosen, rejected], 1).flatten(), **columns)


def rankings(world: World, num: int, size: int, generator: torch.Generator) -> TokenBatch:
    """`num` orders of `size` different responses, drawn by Plackett-Luce from R* (Gumbel noise, then sorting)."""
    context = torch.multinomial(world.contexts, num, replacement=True, generator=generator)
    drawn = torch.rand(num, world.num_responses, generator=generator).argsort(1)[:, :size]
    noise = -torch.log(-torch.log(torch.rand(num, size, generator=generator, dtype=torch.float64)))
    order = (world.oracle[context[:, None], drawn] + noise).argsort(1, descending=True)
    batch = batch_of(world, context.repeat_interleave(size), drawn.gather(1, order).flatten())
    return batch.fill(
        declared={"rank": Tensor},
        ranking=torch.arange(num).repeat_interleave(size),
        rank=torch.arange(size).repeat(num),
    )


def ratings(world: World, num: int, generator: torch.Generator, *, noise: float = 0.0) -> TokenBatch:
    """`num` responses drawn evenly, rated R* + `noise` times a standard normal."""
    context = torch.multinomial(world.contexts, num, replacement=True, generator=generator)
    response = torch.randint(world.num_responses, (num,), generator=generator)
    value = world.oracle[context, response]
    value = value + noise * torch.randn(num, generator=generator, dtype=torch.float64)
    return batch_of(world, context, response).fill(declared={"rating": Tensor}, rating=value)
