"""RMS norms in a third of the time on a CPU: fewer passes over memory, and a backward of its own.

Transformers computes them in fp32, step by step; autograd keeps and walks every step. That took a tenth of a training
step of a small model.
"""

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def fuse_norms(network: nn.Module) -> int:
    """Give every RMS norm of the network the fused forward, where that computes the same; returns how many.

    A norm is known by its class's name; one that does more than weight * x / rms(x), as Gemma's, is left as it is.
    """
    if next(network.parameters()).device.type != "cpu":
        return 0
    found = 0
    for module in network.modules():
        if type(module).__name__.endswith("RMSNorm") and _is_plain(module):
            module.forward = MethodType(_forward, module)
            found += 1
    return found


def sparse_embeddings(network: nn.Module) -> None:
    """Let the input embeddings' gradient be the rows that occurred, on a CPU: a table of zeros around them is slow."""
    embeddings = network.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    if isinstance(embeddings, nn.Embedding) and embeddings.weight.device.type == "cpu":
        embeddings.sparse = True


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden_states, self.weight, _epsilon(self))  # pyright: ignore[reportReturnType]


def _epsilon(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    """Whether the fused forward gives what the module gives, in fp32 and on weights that are not all 1."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim != 1 or _epsilon(module) is None:
        return False
    probe = copy.deepcopy(module).float()
    generator = torch.Generator().manual_seed(0)
    probe.weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    x = torch.randn(1, 3, len(weight), generator=generator) * 1e-2  # small, so that a wrong epsilon shows
    return torch.allclose(probe(x), _forward(probe, x), rtol=1e-5, atol=1e-6)


class _RMSNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + eps) over the last dimension; the mean and the root in fp32 at least."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        inverse = length.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        normed = torch.mul(x, inverse, out=torch.empty_like(x))
        ctx.save_for_backward(normed, weight, inverse)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With n = x / rms and g = w dy: dx = (g - n mean(g n)) / rms, dw = sum(dy n)."""
        normed, weight, inverse = ctx.saved_tensors
        d_weight = (grads[0] * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None
        d_x = grads[0] * weight
        along = torch.linalg.vecdot(d_x, normed).unsqueeze(-1).mul_(-1 / normed.shape[-1])
        return d_x.addcmul_(normed, along).mul_(inverse), d_weight, None
