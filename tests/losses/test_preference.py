"""Pair losses against numbers worked out by hand."""

import math

import pytest
import torch

from assay.losses.preference import bradley_terry, centring, dpo

t = torch.tensor


def test_bradley_terry_at_zero_is_log_two():
    assert bradley_terry(t([1.5]), t([1.5])).item() == pytest.approx(0.6931472)


def test_bradley_terry_by_hand():
    # -log sigmoid(2) = log(1 + e^-2) = 0.126928; -log sigmoid(-2) = 2.126928
    assert bradley_terry(t([3.0, 1.0]), t([1.0, 3.0])).tolist() == pytest.approx([0.126928, 2.126928], abs=1e-6)


def test_margin_is_taken_off():
    # d = 2 - 0.5 = 1.5: log(1 + e^-1.5) = 0.201413
    assert bradley_terry(t([3.0]), t([1.0]), margin=t([0.5])).item() == pytest.approx(0.201413, abs=1e-6)


def test_a_margin_of_nothing_is_bradley_terry():
    args, preference = (t([3.0, 1.0, 0.5]), t([1.0, 2.0, 0.5])), t([1.0, 0.5, 0.0])
    without, with_none = (bradley_terry(*args, preference=preference, margin=m) for m in (None, torch.zeros(3)))
    assert torch.equal(without, with_none)


def test_margin_follows_the_preferred_response():
    """Swapping the pair and its label changes nothing."""
    one = bradley_terry(t([3.0]), t([1.0]), margin=t([0.5]), preference=t([0.9]))
    other = bradley_terry(t([1.0]), t([3.0]), margin=t([0.5]), preference=t([0.1]))
    assert one.item() == pytest.approx(other.item())


def test_a_tie_is_symmetric_and_least_at_equal_rewards():
    even = bradley_terry(t([0.0]), t([0.0]), preference=t([0.5])).item()
    apart = bradley_terry(t([1.0, -1.0]), t([-1.0, 1.0]), preference=t([0.5, 0.5])).tolist()
    assert apart[0] == pytest.approx(apart[1])
    # (0.126928 + 2.126928) / 2
    assert apart[0] == pytest.approx(1.126928, abs=1e-6) and even == pytest.approx(0.693147, abs=1e-6)


def test_label_smoothing_by_hand():
    # 0.9 * 0.126928 + 0.1 * 2.126928
    found = bradley_terry(t([3.0]), t([1.0]), label_smoothing=0.1).item()
    assert found == pytest.approx(0.326928, abs=1e-6)


def test_smoothed_optimum_is_the_log_odds_of_the_flip_rate():
    """With a flip rate of 0.2 the loss is least at a difference of log(0.8 / 0.2)."""
    d = t([math.log(4.0)], requires_grad=True)
    bradley_terry(d, torch.zeros(1), label_smoothing=0.2).sum().backward()
    assert d.grad is not None and abs(d.grad.item()) < 1e-7


def test_large_differences_stay_finite():
    found = bradley_terry(t([1e4, -1e4]), t([-1e4, 1e4]))
    assert found.tolist() == [0.0, 2e4]


def test_centring():
    assert centring(t([1.0, 2.0]), t([-1.0, 1.0])).tolist() == [0.0, 9.0]


def test_dpo_by_hand():
    # beta * (chosen - rejected) = 0.1 * (5 - -15) = 2
    assert dpo(t([5.0]), t([-15.0]), beta=0.1).item() == pytest.approx(0.126928, abs=1e-6)


def test_dpo_gradient_weights_wrong_pairs_more():
    """d loss / d chosen = -beta sigmoid(-beta h) (paper, sec. 4)."""
    ratio = t([20.0, -20.0], requires_grad=True)
    dpo(ratio, torch.zeros(2), beta=0.1).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == pytest.approx([-0.1 * 0.1192029, -0.1 * 0.8807971], abs=1e-7)
