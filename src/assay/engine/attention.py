"""Attention over packed trees, registered with transformers so that models stay untouched.

A model whose `_attn_implementation` is "assay_tree" calls `tree_attention` in every layer; which token sees which
comes from the layout that `attend_to` has put in place for the duration of a forward pass. On CUDA the work is
FlexAttention's; on the CPU, where FlexAttention has no backward, it is one autograd function over blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from assay.tokens.trees import Block, Layout

TREE = "assay_tree"
KEEP_PROBABILITIES = 2**22  # elements of a block's [heads, Q, K] up to which backward keeps them, not recomputes


class Attender(Protocol):
    """Computes one layer's attention: query [1, H, N, D], key and value [1, G, N, D] -> [1, N, H, D]."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int, settings: "Scores") -> Tensor:
        """Attention of layer number `layer` (-1 where the family does not number its layers)."""
        ...


class Scores:
    """How a layer turns products into weights: scale, soft cap, sliding window, sinks [H] (an extra logit)."""

    def __init__(self, scale: float, cap: float | None, window: int | None, sinks: Tensor | None) -> None:
        self.scale, self.cap, self.window, self.sinks = scale, cap, window, sinks


_attender: ContextVar[Attender | None] = ContextVar("attender", default=None)


@contextmanager
def attend_to(attender: Attender) -> Iterator[None]:
    """Attention inside this block is computed by `attender`."""
    token = _attender.set(attender)
    try:
        yield
    finally:
        _attender.reset(token)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer; the mask is ignored, the layout says who sees whom."""
    attender = _attender.get()
    if attender is None:
        raise RuntimeError("tree attention outside `attend_to`: run the model through assay.engine.model")
    if dropout:
        raise RuntimeError("attention dropout is not supported over trees; set the model's attention dropout to 0")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = getattr(module, "layer_idx", None)
    settings = Scores(scale, softcap, sliding_window, s_aux)
    return attender(query, key, value, -1 if layer is None else layer, settings), None


AttentionInterface.register(TREE, tree_attention)


class TreeAttention:
    """Attention of a packed row, [1, N] tokens."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.flex_masks: dict[int | None, Any] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int, settings: Scores) -> Tensor:
        """As `Attender`."""
        if query.is_cuda:
            return self.flex(query, key, value, settings)
        return _BlockAttention.apply(query[0], key[0], value[0], settings.sinks, self.layout, settings)[None]  # pyright: ignore[reportOptionalSubscript]

    def flex(self, query: Tensor, key: Tensor, value: Tensor, settings: Scores) -> Tensor:
        """FlexAttention with a block mask made from the layout once per window."""
        from transformers.integrations.flex_attention import flex_attention_forward

        window = settings.window
        if window not in self.flex_masks:
            self.flex_masks[window] = flex_mask(self.layout, window, query.device)
        module = torch.nn.Module()
        module.train(query.requires_grad)
        out, _ = flex_attention_forward(
            module,
            query,
            key,
            value,
            self.flex_masks[window],
            scaling=settings.scale,
            softcap=settings.cap,
            s_aux=settings.sinks,
        )
        return out


def flex_mask(layout: Layout, window: int | None, device: torch.device) -> Any:
    """FlexAttention's block mask of a layout."""
    from torch.nn.attention.flex_attention import create_block_mask

    above, segment = layout.above.to(device), layout.segment_of.to(device)
    positions = layout.positions.to(device)
    num_tokens = layout.num_tokens

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        found = above[segment[query], segment[key]] & (key <= query)
        if window is not None:
            found = found & (positions[query] - positions[key] < window)
        return found

    return create_block_mask(seen, None, None, num_tokens, num_tokens, device=str(device))


class _BlockAttention(torch.autograd.Function):
    """Softmax attention computed block by block, forward and backward in one node.

    One node matters: slicing per tree outside of autograd's sight saves the zero-filled gradients that backward
    would otherwise make for every slice. query [H, N, D], key and value [G, N, D] (H a multiple of G) -> [N, H, D].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, layout: Layout, settings: Scores
    ) -> Tensor:
        heads, num_tokens, _ = query.shape
        out = value.new_empty(num_tokens, heads, value.shape[2])
        kept: list[_Weights | None] = []
        for block in layout.blocks(settings.window):
            found = _weights(query, key, sinks, block, settings)
            mixed = torch.bmm(found.keys, value[:, block.keys])
            out[block.first : block.last] = mixed.view(heads, -1, mixed.shape[2]).transpose(0, 1)
            kept.append(found if found.all.numel() <= KEEP_PROBABILITIES else None)
        ctx.save_for_backward(query, key, value, sinks)
        ctx.layout, ctx.settings, ctx.kept = layout, settings, kept
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks = ctx.saved_tensors
        settings: Scores = ctx.settings
        heads, groups = query.shape[0], key.shape[0]
        blocks = ctx.layout.blocks(settings.window)
        once = len(blocks) == len(ctx.layout.trees)  # every key belongs to one block, so nothing adds up
        d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        d_key, d_value = (
            torch.empty_like(t, memory_format=torch.contiguous_format)
            if once
            else torch.zeros_like(t, dtype=torch.float32)
            for t in (key, value)
        )
        d_sinks = None if sinks is None else torch.zeros_like(sinks, dtype=torch.float32)
        for block, kept in zip(blocks, ctx.kept, strict=True):
            span = slice(block.first, block.last)
            found = kept or _weights(query, key, sinks, block, settings)
            grad = _group(grads[0][span].transpose(0, 1), groups)
            d_weights = torch.bmm(grad, value[:, block.keys].transpose(1, 2))
            if sinks is not None:
                d_weights = torch.nn.functional.pad(d_weights, (0, 1))
            d_scores = torch._softmax_backward_data(d_weights, found.all, -1, found.all.dtype)
            if d_sinks is not None:
                d_sinks += d_scores[..., -1].reshape(heads, -1).sum(-1)
                d_scores = d_scores[..., :-1]
            if found.slope is not None:
                d_scores = d_scores * found.slope
            d_asked = _scaled(d_scores, key[:, block.keys], settings.scale)
            d_query[:, span] = d_asked.view(heads, -1, d_asked.shape[2])
            asked = _group(query[:, span], groups)
            _add(d_key, block.keys, _scaled(d_scores.transpose(1, 2), asked, settings.scale), once)
            _add(d_value, block.keys, torch.bmm(found.keys.transpose(1, 2), grad), once)
        return d_query, d_key.to(key.dtype), d_value.to(value.dtype), d_sinks, None, None


def _add(total: Tensor, keys: slice | Tensor, part: Tensor, once: bool) -> None:
    """Add [G, K, D] at `keys` of `total` [G, N, D], or write it where every key comes once."""
    if once:
        total[:, keys] = part
    elif isinstance(keys, slice):
        total[:, keys] += part
    else:
        total.index_add_(1, keys, part.to(total.dtype))


def _scaled(first: Tensor, second: Tensor, scale: float) -> Tensor:
    """scale * first @ second, the factor inside of the product."""
    return torch.baddbmm(first.new_empty(1, 1, 1), first, second, beta=0, alpha=scale)


def _group(heads: Tensor, groups: int) -> Tensor:
    """[H, Q, D] -> [G, H/G * Q, D]: the queries that share a key head side by side."""
    return heads.reshape(groups, -1, heads.shape[2])


class _Weights(NamedTuple):
    all: Tensor  # [G, H/G * Q, K] attention weights of a block; with sinks [..., K + 1], the sink's last
    slope: Tensor | None  # [G, H/G * Q, K] the soft cap's slope
    width: int | None = None  # K where a sink follows

    @property
    def keys(self) -> Tensor:
        """The weights of the keys alone."""
        return self.all if self.width is None else self.all[..., : self.width]


def _weights(query: Tensor, key: Tensor, sinks: Tensor | None, block: Block, settings: Scores) -> _Weights:
    groups, heads = key.shape[0], query.shape[0]
    asked = _group(query[:, block.first : block.last], groups)
    keys = key[:, block.keys].transpose(1, 2)
    mask = block.additive(heads // groups, query.dtype)
    slope = None
    if settings.cap is not None:
        squashed = torch.tanh(torch.bmm(asked, keys).mul_(settings.scale / settings.cap))
        slope = 1 - squashed**2
        scores = squashed.mul_(settings.cap)
        scores = scores if mask is None else scores.add_(mask)
    elif mask is None:
        scores = _scaled(asked, keys, settings.scale)
    else:
        scores = torch.baddbmm(mask, asked, keys, alpha=settings.scale)
    if sinks is None:
        return _Weights(torch.softmax(scores, dim=-1), slope)
    extra = sinks.to(scores.dtype).view(groups, -1, 1, 1).expand(-1, -1, block.last - block.first, 1)
    scores = torch.cat([scores, extra.reshape(groups, -1, 1)], dim=-1)
    return _Weights(torch.softmax(scores, dim=-1), slope, keys.shape[2])
