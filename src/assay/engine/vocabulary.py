"""Vocabulary logits only where a loss reads them, in chunks, never all at once.

`token_logprobs` is the fast path: log-probability and entropy with a hand-written backward. `over_vocabulary` runs
any other function of the logits chunk by chunk, forward and backward.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.batch import VocabularyFn
from assay.shapes import FlatFloat, FlatInt, Hidden

CHUNK_BYTES = 2**26  # of one chunk's fp32 logits


def chunk_size(vocabulary: int) -> int:
    """Tokens in a chunk."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def token_logprobs(
    hidden: Hidden,
    weight: Tensor,
    bias: Tensor | None,
    targets: FlatInt,
    *,
    temperature: float,
    cap: float | None,
    scale: float,
    entropy: bool,
) -> tuple[FlatFloat, FlatFloat | None]:
    """log p(targets) and, if asked, the entropy, in fp32 nats.

    logits = cap(scale * (hidden @ weight.T + bias)) / temperature, weight [V, D]; cap(x) = c tanh(x / c), or x.
    """
    logprobs, entropies = _TokenLogprobs.apply(hidden, weight, bias, targets, temperature, cap, scale, entropy)  # pyright: ignore[reportGeneralTypeIssues]
    return logprobs, entropies if entropy else None


def scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, scale: float) -> Tensor:
    """[C, V] logits in fp32: cap(scale * (hidden @ weight.T + bias))."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    if scale != 1:
        logits *= scale
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


class _TokenLogprobs(torch.autograd.Function):
    """Keeps no logits: backward makes each chunk's again, which costs one more matrix product."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        cap: float | None,
        scale: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        normalisers = torch.empty_like(logprobs)
        entropies = torch.zeros_like(logprobs)
        size = chunk_size(weight.shape[0])
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            logits = scaled_logits(hidden[part], weight, bias, cap, scale).div_(temperature)
            normalisers[part] = torch.logsumexp(logits, dim=-1)
            chosen = logits.gather(1, targets[part, None]).squeeze(1)
            logprobs[part] = chosen - normalisers[part]
            if entropy:
                probabilities = torch.exp(logits - normalisers[part, None])
                entropies[part] = normalisers[part] - (probabilities * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropies)
        ctx.settings = (temperature, cap, scale, entropy)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs, grad_entropies = grads
        hidden, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        temperature, cap, scale, entropy = ctx.settings
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        d_weight = d_weight.to(weight.device) if d_weight is not None else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        size = chunk_size(weight.shape[0])
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            logits = scaled_logits(hidden[part], weight, bias, cap, scale)
            slope = (scale / temperature) * (1 - (logits / cap) ** 2) if cap is not None else scale / temperature
            scores = logits / temperature - normalisers[part, None]  # log-probabilities of the whole vocabulary
            d_logits = torch.exp(scores)
            if entropy:  # dH/dz = -p (log p + H)
                d_logits.mul_(
                    -(grad_logprobs[part, None] + grad_entropies[part, None] * (scores + entropies[part, None]))
                )
            else:
                d_logits.mul_(-grad_logprobs[part, None])
            d_logits.scatter_add_(1, targets[part, None], grad_logprobs[part, None])
            d_logits = d_logits.mul_(slope).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[part] = d_logits @ weight
            if d_weight is not None:
                d_weight += d_logits.T @ hidden[part]
            if d_bias is not None:
                d_bias += d_logits.float().sum(0)
        d_weight = d_weight.to(weight.dtype) if d_weight is not None else None
        return d_hidden, d_weight, d_bias, None, None, None, None, None


class _OverVocabulary(torch.autograd.Function):
    """Any function of the logits, run again with gradient in backward, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        logits_of: Callable[..., Tensor],
        function: VocabularyFn,
        columns: Mapping[str, Tensor],
    ) -> Tensor:
        size = chunk_size(weight.shape[0])
        values: list[Tensor] = []
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            chunk = {name: column[part] for name, column in columns.items()}
            values.append(function(logits_of(hidden[part], weight, bias), chunk))
        ctx.save_for_backward(hidden, weight, bias)
        ctx.logits_of, ctx.function, ctx.columns = logits_of, function, columns
        return torch.cat(values) if values else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, Tensor, Tensor | None] = ctx.saved_tensors
        hidden, weight, bias = (None if tensor is None else tensor.detach().requires_grad_() for tensor in saved)
        assert hidden is not None and weight is not None
        wanted = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
        totals = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in wanted]
        size = chunk_size(weight.shape[0])
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            chunk = {name: column[part] for name, column in ctx.columns.items()}
            with torch.enable_grad():
                value = ctx.function(ctx.logits_of(hidden[part], weight, bias), chunk)
            found = torch.autograd.grad(value, wanted, grads[0][part], allow_unused=True)
            for total, grad in zip(totals, found, strict=True):
                if grad is not None:
                    total += grad
        cast = [total.to(tensor.dtype) for total, tensor in zip(totals, wanted, strict=True)]
        return (*cast, *[None] * (6 - len(cast)))


def over_vocabulary(
    function: VocabularyFn,
    hidden: Hidden,
    weight: Tensor,
    bias: Tensor | None,
    columns: Mapping[str, Tensor],
    *,
    temperature: float,
    cap: float | None,
    scale: float,
) -> FlatFloat:
    """`function(logits [C, V], columns {name: [C]}) -> [C]` over all tokens, one chunk of logits at a time."""

    def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return scaled_logits(hidden, weight, bias, cap, scale) / temperature

    return _OverVocabulary.apply(hidden, weight, bias, logits_of, function, columns)  # pyright: ignore[reportReturnType]
