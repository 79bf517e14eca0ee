"""AdamW over one flat buffer: fp32 masters, gradients accumulated in fp32, whatever type the model computes in."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

LEARNED_PACE = 100.0


class FlatAdamW:
    """Decoupled weight decay Adam (Loshchilov & Hutter 2019, arXiv:1711.05101) on flattened parameters.

    All trainable parameters live in fp32 buffers: with weight decay (matrices), without (the rest), and the `learned`
    numbers of a loss, which are few, far from 0 and move `LEARNED_PACE` times as fast as weights. A parameter that
    computes in another type (bf16) keeps its own tensor, refreshed from the master after each step; an fp32 parameter
    is a view of its master. Few buffers make the step a few large operations, not thousands.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        named = [(name, p) for name, p in parameters if p.requires_grad]
        if not named:
            raise ValueError("no parameter is trainable")
        learned = [(name, p) for name, p in named if name.startswith("learned.")]
        decayed = [(name, p) for name, p in named if p.ndim > 1 and not name.startswith("learned.")]
        others = [(name, p) for name, p in named if p.ndim <= 1 and not name.startswith("learned.")]
        kinds = [(decayed, weight_decay, 1.0), (others, 0.0, 1.0), (learned, 0.0, LEARNED_PACE)]
        self.groups = [_Group(members, pace) for members, _, pace in kinds if members]
        decays = [decay for members, decay, _ in kinds if members]
        options = [{"params": [g.master], "weight_decay": d} for g, d in zip(self.groups, decays, strict=True)]
        fused = named[0][1].device.type in ("cpu", "cuda")
        self.adam = torch.optim.AdamW(options, lr=lr, betas=betas, eps=eps, fused=fused)
        self.pull, self.starts = 0.0, list[tuple[_Group, Tensor]]()
        for group in self.groups:  # made now: between the first step's activations they would tear holes in the heap
            self.adam.state[group.master] = {
                "step": torch.zeros((), device=group.master.device if fused else None),
                "exp_avg": torch.zeros_like(group.grad),
                "exp_avg_sq": torch.zeros_like(group.grad),
            }

    @torch.no_grad()
    def pull_to_start(self, strength: float) -> None:
        """Add strength/2 |weights - start|^2 to every step's loss: a Gaussian prior around where training starts.

        The start is where the weights are when this is first called with a strength. `learned` numbers are no weights.
        """
        self.pull = strength
        if strength and not self.starts:
            self.starts = [(g, g.master.data.clone()) for g in self.groups if g.pace == 1.0]

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """L2 norm of all gradients, by rows: summed in one go, fp32 loses over a percent of a hundred million."""
        self._settle()
        parts = [part for group in self.groups for part in _by_rows(group.grad)]
        return float(torch.cat([torch.linalg.vector_norm(part, dim=1) for part in parts]).norm())

    def check_gradient(self) -> float:
        """The norm of all gradients; they are forgotten and FloatingPointError is raised where it is not finite."""
        norm = self.gradient_norm()
        if not norm < float("inf"):
            self.zero_grad()
            raise FloatingPointError(f"the gradient's norm is {norm}: nothing was updated")
        return norm

    @torch.no_grad()
    def step(self, *, lr: float, max_norm: float | None) -> float:
        """Clip to `max_norm`, update, zero the gradients. Returns the norm before clipping.

        A gradient that is not finite changes nothing and raises: weights are never updated with NaN. Nor does one of 0
        change anything.
        """
        self._settle()
        if self.pull:
            for group, start in self.starts:
                group.grad.add_(group.master.data, alpha=self.pull).sub_(start, alpha=self.pull)
        norm = self.check_gradient()
        if not norm:  # nothing said where to go: old moments and weight decay move nothing
            return norm
        for group, options in zip(self.groups, self.adam.param_groups, strict=True):
            if max_norm is not None and norm > max_norm:
                group.grad.mul_(max_norm / norm)
            group.master.grad = group.grad
            options["lr"] = lr * group.pace
        self.adam.step()
        for group in self.groups:
            group.publish()
        self.zero_grad()
        return norm

    @torch.no_grad()
    def restart(self) -> None:
        """Forget the moments: another training of the same weights begins."""
        for state in self.adam.state.values():
            for value in state.values():
                value.zero_()

    @torch.no_grad()
    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.groups:
            group.forget()

    def _settle(self) -> None:
        for group in self.groups:
            group.settle()

    def gradients(self) -> dict[str, Tensor]:
        """Name -> accumulated fp32 gradient, views of the buffer."""
        self._settle()
        return {name: view for group in self.groups for name, view in group.views(group.grad).items()}

    def masters(self) -> dict[str, Tensor]:
        """Name -> fp32 weight, views of the buffer."""
        return {name: view for group in self.groups for name, view in group.views(group.master.data).items()}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Put back weights that `masters` showed earlier; the moments stay as they are."""
        for name, master in self.masters().items():
            master.copy_(weights[name])
        for group in self.groups:
            group.publish()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as flat tensors."""
        state: dict[str, Tensor] = {}
        for index, group in enumerate(self.groups):
            state[f"{index}.master"] = group.master.data
            state |= {f"{index}.{name}": value for name, value in self.adam.state[group.master].items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From `state_dict`; a missing, unexpected or misshapen entry is an error."""
        for index, group in enumerate(self.groups):
            entries = {key.split(".", 1)[1]: value for key, value in state.items() if key.startswith(f"{index}.")}
            shapes = {name: value.shape for name, value in entries.items() if name != "step"}
            if (
                shapes != dict.fromkeys(("master", "exp_avg", "exp_avg_sq"), group.master.shape)
                or "step" not in entries
            ):
                raise ValueError(f"optimiser group {index}: the saved state does not fit this model")
            group.master.data.copy_(entries.pop("master"))
            device = group.master.device
            self.adam.state[group.master] = {name: value.to(device, copy=True) for name, value in entries.items()}
            group.publish()
        if extra := {key.split(".")[0] for key in state} - {str(i) for i in range(len(self.groups))}:
            raise ValueError(f"unexpected optimiser groups {sorted(extra)}")


class _Group:
    """Parameters that share a weight decay and a pace, as one master and one gradient buffer.

    `unset` names those whose part of the buffer holds nothing yet: the first gradient is copied there and not added to
    zeros, which for a hundred million weights would have to be written and read first.
    """

    def __init__(self, members: list[tuple[str, nn.Parameter]], pace: float) -> None:
        self.pace = pace
        self.names = [name for name, _ in members]
        self.parameters = [p for _, p in members]
        device = self.parameters[0].device
        flat = torch.empty(sum(p.numel() for p in self.parameters), dtype=torch.float32, device=device)
        self.master = nn.Parameter(flat)
        self.grad = torch.empty_like(flat)
        self.unset: set[str] = set()
        weights, self.parts = self.views(self.master.data), self.views(self.grad)
        for name, p in members:
            weights[name].copy_(p.data)
            if p.dtype == torch.float32:
                p.data = weights[name]
                p.grad = self.parts[name]
            else:
                p.register_post_accumulate_grad_hook(self._mover(name))
        self.forget()

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Name -> the part of `flat` that is this parameter's."""
        found: dict[str, Tensor] = {}
        start = 0
        for name, p in zip(self.names, self.parameters, strict=True):
            found[name] = flat[start : start + p.numel()].view(p.shape)
            start += p.numel()
        return found

    @torch.no_grad()
    def forget(self) -> None:
        """No gradient yet."""
        for name, p in zip(self.names, self.parameters, strict=True):
            if p.dtype == torch.float32:
                self.parts[name].zero_()  # autograd adds to it by itself
            else:
                self.unset.add(name)

    @torch.no_grad()
    def settle(self) -> None:
        """Zeros where no gradient came."""
        for name in self.unset:
            self.parts[name].zero_()
        self.unset.clear()

    def _mover(self, name: str) -> Callable[[Tensor], None]:
        """Moves a parameter's gradient into the buffer."""
        target = self.parts[name]

        def hook(parameter: Tensor) -> None:
            grad = parameter.grad
            assert grad is not None
            first = name in self.unset
            self.unset.discard(name)
            if grad.is_sparse:
                if first:
                    target.zero_()
                target.index_add_(0, grad._indices()[0], grad._values().float())
            elif first:
                target.copy_(grad)
            else:
                target.add_(grad)
            parameter.grad = None

        return hook

    def publish(self) -> None:
        """Copy the masters into the parameters that compute in another type."""
        for p, view in zip(self.parameters, self.views(self.master.data).values(), strict=True):
            if p.dtype != torch.float32:
                p.data.copy_(view)


def _by_rows(flat: Tensor, width: int = 4096) -> tuple[Tensor, Tensor]:
    """Views [n, width] and [1, rest]."""
    whole = len(flat) // width * width
    return flat[:whole].view(-1, width), flat[None, whole:]
