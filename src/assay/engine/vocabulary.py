"""Vocabulary logits only where a loss reads them, a chunk at a time.

`token_logprobs` is the fast path: log-probability and entropy with a hand-written backward. `over_vocabulary` runs
any other function of the logits chunk by chunk, forward and backward.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.batch import VocabularyFn
from assay.shapes import FlatFloat, FlatInt, Hidden

CHUNK_BYTES = 2**27  # of one chunk's fp32 logits
KEPT_BYTES = 2**29  # of what backward needs of a micro-batch's chunks; the others' logits are computed again


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
    room = KEPT_BYTES if torch.is_grad_enabled() and cap is None else 0
    settings = (temperature, cap, scale, entropy, room)
    logprobs, entropies = _TokenLogprobs.apply(hidden, weight, bias, targets, *settings)  # pyright: ignore[reportGeneralTypeIssues]
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
    """Keeps softmax(logits) - onehot(targets) of the first chunks, as far as there is room.

    Backward makes the logits of the others again, which costs one more matrix product and several passes over them.
    """

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
        room: int,
    ) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        logprobs = hidden.new_empty(len(hidden), dtype=torch.float32)
        normalisers = torch.empty_like(logprobs)
        entropies = torch.zeros_like(logprobs)
        size = chunk_size(weight.shape[0])
        for first in range(0, len(hidden), size):
            part = slice(first, first + size)
            logits = scaled_logits(hidden[part], weight, bias, cap, scale)
            if temperature != 1:
                logits.div_(temperature)
            scores = torch.log_softmax(logits, dim=-1)
            chosen = targets[part, None]
            logprobs[part] = scores.gather(1, chosen).squeeze(1)
            normalisers[part] = logits.gather(1, chosen).squeeze(1) - logprobs[part]
            room -= len(chosen) * len(weight) * hidden.element_size()
            if entropy or room >= 0:
                torch.exp(scores, out=logits)
            if entropy:
                entropies[part] = -torch.linalg.vecdot(logits, scores)
            if room >= 0:
                logits.scatter_add_(1, chosen, logits.new_full((len(chosen), 1), -1.0))
                kept.append(logits.to(hidden.dtype))
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropies, *kept)
        ctx.settings = (temperature, cap, scale)
        ctx.set_materialize_grads(False)  # entropy is often only looked at: then its gradient is None
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, entropies, *kept = ctx.saved_tensors
        temperature, cap, scale = ctx.settings
        gains = torch.zeros_like(normalisers) if grads[0] is None else grads[0]
        entropy_gains: Tensor | None = grads[1]
        if entropy_gains is not None:
            kept = []  # its gradient is of the logits too
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        size, slope = chunk_size(weight.shape[0]), scale / temperature
        for index, first in enumerate(range(0, len(hidden), size)):
            part = slice(first, first + size)
            if index < len(kept):
                d_logits, pull = kept[index], -slope * gains[part, None]
            else:
                logits = scaled_logits(hidden[part], weight, bias, cap, scale)
                bend = None if cap is None else 1 - (logits / cap) ** 2
                if temperature != 1:
                    logits.div_(temperature)
                entropy = None if entropy_gains is None else (entropies[part, None], entropy_gains[part, None])
                scores = logits.sub_(normalisers[part, None])
                d_logits = _gradient(scores, targets[part, None], gains[part, None], entropy)
                d_logits, pull = (d_logits if bend is None else d_logits.mul_(bend)).to(hidden.dtype), slope
            if d_hidden is not None:
                d_hidden[part] = pull * (d_logits @ weight)
            if d_weight is not None:
                d_weight += d_logits.T @ (pull * hidden[part]).to(hidden.dtype)
            if d_bias is not None:
                d_bias += (pull * d_logits).sum(0, dtype=torch.float32)
        d_weight = d_weight.to(weight.dtype) if d_weight is not None else None
        return d_hidden, d_weight, d_bias, *(None,) * 6


def _gradient(scores: Tensor, targets: Tensor, gains: Tensor, entropy: tuple[Tensor, Tensor] | None) -> Tensor:
    """[C, V] of `gains` * scores[targets], and of the entropy, if its values and gains are given, in scores' place.

    `scores` are log-probabilities of the whole vocabulary, the others [C, 1].
    """
    if entropy is None:
        found = scores.exp_().mul_(-gains)
    else:  # dH/dz = -p (log p + H)
        found = scores.exp()
        found.mul_(scores.add_(entropy[0]).mul_(entropy[1]).add_(gains)).neg_()
    return found.scatter_add_(1, targets, gains)


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
        for first in range(0, max(1, len(hidden)), size):  # of no token at all too: what is returned has its shape
            part = slice(first, first + size)
            chunk = {name: column[part] for name, column in columns.items()}
            values.append(function(logits_of(hidden[part], weight, bias), chunk))
        ctx.save_for_backward(hidden, weight, bias)
        ctx.logits_of, ctx.function, ctx.columns = logits_of, function, columns
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, Tensor, Tensor | None] = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        hidden, weight, bias = (
            None if tensor is None else tensor.detach().requires_grad_(need)
            for tensor, need in zip(saved, needs, strict=True)
        )
        assert hidden is not None and weight is not None
        wanted = [tensor for tensor in (hidden, weight, bias) if tensor is not None and tensor.requires_grad]
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
        cast = iter([total.to(tensor.dtype) for total, tensor in zip(totals, wanted, strict=True)])
        return (*(next(cast) if need else None for need in needs), None, None, None)


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
) -> Tensor:
    """`function(logits [C, V], columns {name: [C, ...]}) -> [C, ...]` of all tokens, a chunk of logits at a time."""

    def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return scaled_logits(hidden, weight, bias, cap, scale) / temperature

    return _OverVocabulary.apply(hidden, weight, bias, logits_of, function, columns)  # pyright: ignore[reportReturnType]
