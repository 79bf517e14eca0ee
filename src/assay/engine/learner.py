"""A model, its gradients and its optimiser: unreduced losses in, one optimiser step out."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.batch import ModelOutput, Term, TokenBatch, VocabularyFn
from assay.engine.model import Model, tempered
from assay.engine.optimizer import FlatAdamW
from assay.engine.weights import item_weights, rows_of, units_of
from assay.tokens.trees import plan

CPU_FILL = 2048  # tokens; every micro-batch moves all gradients once, so few are fast; more only takes memory


class Learner:
    """Computes in micro-batches of at most `token_budget` tokens; the gradient does not depend on the budget.

    One learner may serve several roles ("policy" and "value") with one body and one forward pass.
    """

    def __init__(
        self, model: Model, optimizer: FlatAdamW | None = None, *, token_budget: int = 4096, pace: float = 1.0
    ) -> None:
        """`pace`: what every learning rate is multiplied with here, such as a critic's."""
        self.model = model.eval()
        self.optimizer, self.pace = optimizer, pace
        self.token_budget = token_budget
        self.num_tokens = 0  # computed by the model so far, in forward passes with gradient

    def forward_backward(self, streams: Mapping[str, TokenBatch], terms: Sequence[Term]) -> dict[str, float]:
        """Add the gradient of all terms to what is accumulated; return loss and metrics under the loss's weights.

        A loss that is not finite where it counts raises FloatingPointError before anything is updated.
        """
        totals: dict[str, float] = {}
        for stream in dict.fromkeys(term.stream for term in terms):
            mine = [term for term in terms if term.stream == stream]
            temperature = self.model.temperature if stream == "main" else 1.0  # what others wrote is not sampled
            with self.computing(), tempered(self.model, temperature):
                found = self._stream(streams[stream], mine)
            for name, value in found.items():
                key = name if stream == "main" or name == "loss" else f"{stream}/{name}"
                totals[key] = totals.get(key, 0.0) + value
        return totals

    def _stream(self, batch: TokenBatch, terms: Sequence[Term]) -> dict[str, float]:
        weights = [item_weights(batch, term.reduction, own=term.own) for term in terms]
        reads = tuple(dict.fromkeys(name for term in terms for name in term.reads))
        vocabulary = {name: fn for term in terms for name, fn in term.vocabulary.items()}
        totals: dict[str, float] = {}
        for rows in self._plan(batch, terms):
            part = batch.select(rows)
            out = self.model(part, reads, vocabulary, token_columns(part))
            self.num_tokens += self.model.num_tokens
            part = part.to(self.model.device)
            loss = torch.zeros((), device=self.model.device)
            for term, weight in zip(terms, weights, strict=True):
                share = rows_of(batch, weight, rows, term.reduction, part.ids.shape[1]).to(self.model.device)
                values, metrics = term.fn(out, part)
                total = _weighted(values, share)
                loss = loss + term.weight * total
                told = metrics if weight.any() else {}  # of nothing there is no mean
                for name, value in {"loss": term.weight * values, **told}.items():
                    totals[name] = totals.get(name, 0.0) + float(_weighted(value.detach(), share))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} on rows {rows.tolist()}")
            loss.backward()
        return totals

    @torch.no_grad()
    def forward(
        self, batch: TokenBatch, reads: tuple[str, ...], vocabulary: Mapping[str, VocabularyFn] | None = None
    ) -> ModelOutput:
        """The columns in `reads` for the whole batch, without gradient, on the CPU."""
        with self.computing():
            return self._forward(batch, reads, vocabulary)

    def _forward(
        self, batch: TokenBatch, reads: tuple[str, ...], vocabulary: Mapping[str, VocabularyFn] | None
    ) -> ModelOutput:
        columns: dict[str, Any] = {}
        for rows in self._plan(batch):
            part = batch.select(rows)
            out = self.model(part, reads, vocabulary, token_columns(part)).columns
            out |= {f"vocabulary.{name}": value for name, value in out.pop("vocabulary", {}).items()}
            for name, value in out.items():
                if name not in columns:
                    wide = value.ndim > 1 and name != "outputs"
                    shape = (*batch.ids.shape, *value.shape[2:]) if wide else (batch.num_rows, *value.shape[1:])
                    columns[name] = torch.zeros(shape, dtype=value.dtype)
                target = columns[name] if value.ndim == 1 else columns[name][:, : value.shape[1]]
                target[rows] = value.cpu()
        named = {name: value for name, value in columns.items() if "." not in name}
        if vocabulary:
            named["vocabulary"] = {name: columns[f"vocabulary.{name}"] for name in vocabulary}
        return ModelOutput(**named)

    def check_gradient(self) -> None:
        """FloatingPointError where what was accumulated is not finite."""
        if self.optimizer is not None:
            self.optimizer.check_gradient()

    def step(self, *, lr: float, max_norm: float | None) -> float:
        """One optimiser step on what was accumulated; returns the gradient's norm before clipping."""
        if self.optimizer is None:
            raise RuntimeError("this learner is frozen")
        return self.optimizer.step(lr=lr * self.pace, max_norm=max_norm)

    @contextlib.contextmanager
    def computing(self) -> Iterator[Model]:
        """The model in the state in which it computes for this learner."""
        yield self.model

    def restart(self) -> None:
        """Forget the optimiser's moments: another training of the same weights begins."""
        if self.optimizer is None:
            raise RuntimeError("this learner is frozen")
        self.optimizer.restart()

    def state_dict(self) -> dict[str, Tensor]:
        """Trained weights and the optimiser's state."""
        if self.optimizer is None:
            raise RuntimeError("this learner is frozen")
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From `state_dict`; what is missing or does not fit is an error."""
        if self.optimizer is None:
            raise RuntimeError("this learner is frozen")
        self.optimizer.load_state_dict(state)

    def _plan(self, batch: TokenBatch, terms: Sequence[Term] = ()) -> list[Tensor]:
        fill = CPU_FILL if self.model.device.type == "cpu" else None
        units = units_of(batch, [term.reduction for term in terms])
        return plan(batch, self.token_budget, fill=fill, units=units, shared=self.model.shares_prompts)


def token_columns(batch: TokenBatch) -> dict[str, Tensor]:
    """The batch's [B, T] columns, which vocabulary functions see at counted tokens."""
    return {name: value for name, value in batch.columns.items() if name != "prompts" and value.ndim == 2}


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Sum of weights * values over what counts; 0 * nan would be nan."""
    return (weights * torch.where(weights > 0, values, 0.0)).sum()


class AdapterOff(Learner):
    """The reference of a policy with fresh adapters: the same weights, adapters switched off."""

    @contextlib.contextmanager
    def computing(self) -> Iterator[Model]:
        """As `Learner`."""
        with self.model.adapter.disable_adapter():
            yield self.model


class Lagging(Learner):
    """A copy of another learner's model that is not trained but follows it, every few steps, by some of the way."""

    def __init__(self, source: Learner, *, every: int, share: float = 1.0) -> None:
        """Every `every` optimiser steps its weights become share * the source's + (1 - share) * its own.

        Of adapters the factors are averaged, not their products: exact at share 1, and near it while one of them hardly
        moves.
        """
        super().__init__(copy.deepcopy(source.model).requires_grad_(False), token_budget=source.token_budget)
        if source.optimizer is None:
            raise ValueError("there is nothing to follow: the source is not trained")
        self.masters = source.optimizer.masters()  # views: they show the source's weights as they are
        self.weights = {name: master.clone() for name, master in self.masters.items()}  # fp32: small moves add up
        self.every, self.share = every, share

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """After optimiser step `step`, counted from 1."""
        if step % self.every == 0:
            for name, weight in self.weights.items():
                weight.lerp_(self.masters[name], self.share)
            self._publish()

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights."""
        return self.weights

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From `state_dict`."""
        for name, weight in self.weights.items():
            weight.copy_(state[name])
        self._publish()

    def _publish(self) -> None:
        for name, p in self.model.named_parameters():
            if name in self.weights:
                p.copy_(self.weights[name])


class OneAdapter(Learner):
    """One of several adapters of a model, with the head that is its own; the other learners share the body."""

    def __init__(
        self,
        model: Model,
        adapter: str,
        optimizer: FlatAdamW | None = None,
        *,
        token_budget: int = 4096,
        pace: float = 1.0,
    ) -> None:
        super().__init__(model, optimizer, token_budget=token_budget, pace=pace)
        self.adapter = adapter

    @contextlib.contextmanager
    def computing(self) -> Iterator[Model]:
        """As `Learner`."""
        self.model.use(self.adapter)
        yield self.model
