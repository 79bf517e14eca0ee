"""Policy losses, credit and KL estimators against numbers worked out by hand and exact expectations."""

import math

import pytest
import torch

from assay.losses.credit import leave_one_out
from assay.losses.kl import k1, k3
from assay.losses.masked import masked_mean, masked_sum
from assay.losses.policy import log_ratio, negative_log_likelihood, reinforce

t = torch.tensor


def test_leave_one_out_by_hand():
    # group 0: 1, 4, 7 -> 1 - 5.5, 4 - 4, 7 - 2.5; group 1: 2, 6 -> -4, 4; group 2 alone -> 0
    rewards, group = t([1.0, 2.0, 4.0, 6.0, 7.0, 9.0]), t([0, 1, 0, 1, 0, 2])
    assert leave_one_out(rewards, group).tolist() == [-4.5, -4.0, 0.0, 4.0, 4.5, 0.0]


def test_leave_one_out_ignores_a_shift_per_group():
    rewards, group = torch.randn(8), t([0, 0, 0, 0, 1, 1, 1, 1])
    shifted = rewards + t([3.0] * 4 + [-7.0] * 4)
    assert torch.allclose(leave_one_out(rewards, group), leave_one_out(shifted, group), atol=1e-5)


def test_masked_sum_ignores_nan():
    values, mask = t([[1.0, float("nan"), 3.0], [float("inf"), 5.0, 6.0]]), t([[True, False, True], [False] * 3])
    assert masked_sum(values, mask).tolist() == [4.0, 0.0]
    assert masked_mean(values, mask).tolist() == [2.0, 0.0]


def test_reinforce_by_hand():
    logprobs, advantages = t([[-1.0, -2.0, -9.0]]), t([[2.0, -0.5, 100.0]])
    # -(2 * -1 + -0.5 * -2) = 1
    assert reinforce(logprobs, advantages, t([[True, True, False]])).tolist() == [1.0]


def test_log_ratio_and_nll():
    mask = t([[True, True, False]])
    assert log_ratio(t([[-1.0, -2.0, -3.0]]), t([[-1.5, -4.0, float("nan")]]), mask).tolist() == [2.5]
    assert negative_log_likelihood(t([[-1.0, -2.0]])).tolist() == [[1.0, 2.0]]


def test_kl_estimators_are_unbiased():
    """Expectations over all outcomes of a small distribution equal the exact KL."""
    p, q = torch.softmax(t([0.3, -1.2, 0.9, 0.1]), 0), torch.softmax(t([1.1, 0.2, -0.5, 0.4]), 0)
    exact = float((p * (p / q).log()).sum())
    one, three = k1(p.log()[None], q.log()[None]), k3(p.log()[None], q.log()[None])
    assert float((p * one).sum()) == pytest.approx(exact, rel=1e-5)
    assert float((p * three).sum()) == pytest.approx(exact, rel=1e-5)
    assert (three >= 0).all() and (one < 0).any()


def test_k3_by_hand():
    # u = e^-1: u - 1 - log u = 0.367879 - 1 + 1
    assert k3(t([[0.0]]), t([[-1.0]])).item() == pytest.approx(math.exp(-1), abs=1e-6)


def test_reinforce_with_leave_one_out_is_the_policy_gradient():
    """Over all samples of a softmax bandit, the expected gradient is the exact gradient of the expected reward."""
    logits = t([0.2, -0.4, 0.7], requires_grad=True)
    rewards = t([1.0, -2.0, 0.5])
    probabilities = torch.softmax(logits, 0)
    (exact,) = torch.autograd.grad((probabilities * rewards).sum(), logits)
    total = torch.zeros(3)
    for a in range(3):
        for b in range(3):
            logprobs = torch.log_softmax(logits, 0)[[a, b]][:, None]
            advantages = leave_one_out(rewards[[a, b]], t([0, 0]))[:, None]
            loss = reinforce(logprobs, advantages, torch.ones(2, 1, dtype=torch.bool)).mean()
            (grad,) = torch.autograd.grad(loss, logits)
            total += (probabilities[a] * probabilities[b]).detach() * -grad
    assert torch.allclose(total, exact, atol=1e-6)
