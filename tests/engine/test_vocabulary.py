"""Chunked log-probabilities and entropies against autograd through the whole matrix of logits."""

import itertools

import pytest
import torch

from assay.engine import vocabulary
from assay.engine.vocabulary import over_vocabulary, token_logprobs

CHUNK = 4 * 37 * 16  # bytes of 16 tokens' logits
SETTINGS = list(itertools.product((1.0, 0.7), (None, 3.0), (1.0, 0.5), (False, True), (False, True), (0, 2 * CHUNK)))


def whole(hidden, weight, bias, targets, temperature, cap, scale):
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    scores = (logits / temperature).log_softmax(-1)
    return scores.gather(1, targets[:, None]).squeeze(1), -(scores.exp() * scores).sum(-1)


@pytest.mark.parametrize(("temperature", "cap", "scale", "entropy", "with_bias", "kept"), SETTINGS)
def test_equals_autograd(temperature, cap, scale, entropy, with_bias, kept, monkeypatch):
    """Of four chunks none is kept for backward, or two are."""
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(vocabulary, "KEPT_BYTES", kept)
    torch.manual_seed(0)
    inputs = [torch.randn(50, 8), torch.randn(37, 8)] + ([torch.randn(37)] if with_bias else [])
    targets = torch.randint(0, 37, (50,))
    gains = torch.randn(2, 50)
    results = []
    for chunked in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        hidden, weight, bias = leaves[0], leaves[1], leaves[2] if with_bias else None
        if chunked:
            logprobs, entropies = token_logprobs(
                hidden, weight, bias, targets, temperature=temperature, cap=cap, scale=scale, entropy=entropy
            )
        else:
            logprobs, entropies = whole(hidden, weight, bias, targets, temperature, cap, scale)
        loss = (gains[0] * logprobs).sum()
        if entropy:
            loss = loss + (gains[1] * entropies).sum()
        loss.backward()
        values = torch.stack([logprobs, entropies]) if entropy else logprobs
        results.append([values.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results):
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("entropy", [False, True])
def test_what_was_kept_is_there_for_a_second_backward(entropy):
    torch.manual_seed(0)
    inputs = torch.randn(9, 8, requires_grad=True), torch.randn(37, 8, requires_grad=True)
    targets = torch.randint(0, 37, (9,))
    logprobs, _ = token_logprobs(*inputs, None, targets, temperature=1.0, cap=None, scale=1.0, entropy=entropy)
    first = torch.autograd.grad(logprobs.sum(), inputs, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(logprobs.sum(), inputs)):
        assert torch.equal(one, other)


def test_only_a_gradient_needs_what_is_kept(monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(vocabulary, "KEPT_BYTES", 2 * CHUNK)
    targets, sizes = torch.zeros(50, dtype=torch.int64), []

    def seen(tensor):
        sizes.append(tuple(tensor.shape))
        return tensor

    for gradient in (True, False):
        hidden = torch.randn(50, 8, requires_grad=True)
        with torch.set_grad_enabled(gradient), torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
            token_logprobs(
                hidden, torch.randn(37, 8), None, targets, temperature=1.0, cap=None, scale=1.0, entropy=False
            )
        assert sizes.count((16, 37)) == 2  # of the first round alone


def test_of_no_token_the_shape_is_the_functions_own():
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.randn(37, 8, requires_grad=True)
    found = over_vocabulary(
        lambda logits, columns: logits[:, :2], hidden, weight, None, {}, temperature=1.0, cap=None, scale=1.0
    )
    assert found.shape == (0, 2)
    found.sum().backward()
    assert hidden.grad.shape == (0, 8) and not weight.grad.any()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_vocabulary_costs_no_gradient(frozen, monkeypatch):
    real, asked = torch.autograd.grad, []
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(37, 8, requires_grad=not frozen)
    monkeypatch.setattr(torch.autograd, "grad", lambda value, wanted, *rest, **named: asked.append(len(wanted)) or
                        real(value, wanted, *rest, **named))  # fmt: skip
    found = over_vocabulary(
        lambda logits, columns: logits.logsumexp(-1), hidden, weight, None, {}, temperature=1.0, cap=None, scale=1.0
    )
    found.sum().backward()
    assert asked == [1 if frozen else 2]
    assert torch.allclose(hidden.grad, ((hidden @ weight.T).softmax(-1) @ weight).detach(), atol=1e-5)
    assert (weight.grad is None) is frozen


def test_entropy_that_is_only_looked_at_changes_no_gradient():
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(37, 8)
    targets = torch.randint(0, 37, (9,))
    grads = []
    for entropy in (False, True):
        logprobs, _ = token_logprobs(
            hidden, weight, None, targets, temperature=1.0, cap=None, scale=1.0, entropy=entropy
        )
        grads.append(torch.autograd.grad(logprobs.sum(), hidden)[0])
    assert torch.equal(*grads)


def test_a_function_over_the_vocabulary_in_chunks(monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", CHUNK)
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(37, 8, requires_grad=True)
    extra = torch.randn(50)

    def function(logits, columns):
        return columns["extra"] * logits.logsumexp(-1)

    found = over_vocabulary(function, hidden, weight, None, {"extra": extra}, temperature=0.5, cap=None, scale=1.0)
    expected = extra * ((hidden @ weight.T) / 0.5).logsumexp(-1)
    for got, want in zip(
        torch.autograd.grad(found.sum(), (hidden, weight)), torch.autograd.grad(expected.sum(), (hidden, weight))
    ):
        assert torch.allclose(got, want, atol=1e-4)
