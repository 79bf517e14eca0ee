"""Policy losses, credit and KL estimators against numbers worked out by hand and exact expectations."""

import math

import pytest
import torch

from assay.losses.credit import leave_one_out
from assay.losses.kl import adapted, k1, k2, k3
from assay.losses.masked import masked_mean, masked_sum
from assay.losses.policy import (
    advantage_regression,
    clipped,
    cut_weights,
    log_ratio,
    negative_log_likelihood,
    pair_clipped_apart,
    pair_clipped_together,
    pair_weights,
    policy_gradient,
    sequence_log_ratios,
    truncated_weights,
    win_regression,
)
from assay.losses.preference import ipo

t = torch.tensor


def leaf(*values):
    """One row of fp32 numbers to differentiate by."""
    return t([list(values)], requires_grad=True)


def gradient(loss, of):
    return torch.autograd.grad(loss.sum(), of, retain_graph=True)[0].flatten().tolist()


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


def test_policy_gradient_by_hand():
    # -w A with w = 1, 2, 1/2; as a function of log pi its slope is itself: at w = 1 that of -A log pi
    moved, advantages = leaf(0.0, math.log(2), -math.log(2)), leaf(2.0, -0.5, 4.0)
    found = policy_gradient(moved, advantages)
    assert found.flatten().tolist() == pytest.approx([-2.0, 1.0, -2.0], abs=1e-6)
    assert gradient(found, moved) == pytest.approx([-2.0, 1.0, -2.0], abs=1e-6)
    assert not policy_gradient(moved.detach(), advantages).requires_grad


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


def test_k2_by_hand():
    # (-1 + 3)^2 / 2 and (-3 + 1)^2 / 2
    assert k2(t([[-1.0, -3.0]]), t([[-3.0, -1.0]])).tolist() == [[2.0, 2.0]]


def test_gradients_of_the_kl_estimators():
    """With samples from pi held fixed: k2's is that of KL(pi || ref), k3's that of KL(ref || pi), k1's nothing."""
    logits = t([0.3, -1.2, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    ours = torch.log_softmax(logits, 0)
    theirs = torch.log_softmax(t([1.1, 0.2, -0.5, 0.4], dtype=torch.float64), 0)

    def expected(estimator):
        return t(gradient(ours.exp().detach() * estimator(ours[None], theirs[None])[0], logits), dtype=torch.float64)

    forward = t(gradient(ours.exp() * (ours - theirs), logits), dtype=torch.float64)
    backward = t(gradient(theirs.exp() * (theirs - ours), logits), dtype=torch.float64)
    assert (forward - backward).abs().max() > 0.1
    assert (expected(k2) - forward).abs().max() < 1e-12
    assert (expected(k3) - backward).abs().max() < 1e-12
    assert expected(k1).abs().max() < 1e-12


# coef 0.1, 100 of 1,000 answers, target 6 nats
@pytest.mark.parametrize(
    ("kl", "coef"),
    [
        (6.0, 0.1),  # there
        (6.6, 0.101),  # e = 0.1: 0.1 (1 + 0.1 / 10)
        (5.4, 0.099),
        (12.0, 0.102),  # e = 1, cut to 0.2
        (600.0, 0.102),
        (0.0, 0.098),
        (-3.0, 0.098),  # an estimate may be negative
    ],
)
def test_the_coefficient_follows_the_kl(kl, coef):
    assert adapted(0.1, kl, 6.0, num=100, horizon=1000.0) == pytest.approx(coef, rel=1e-9)


def test_a_horizon_shorter_than_a_batch_never_turns_the_coefficient():
    """num / horizon would be 10: 0.1 (1 - 0.2 * 10) < 0."""
    assert adapted(0.1, 0.0, 6.0, num=100, horizon=10.0) == pytest.approx(0.08)
    assert adapted(0.1, 60.0, 6.0, num=100, horizon=10.0) == pytest.approx(0.12)


# ratio, advantage, loss, gradient by the log-ratio, for a clip to [1 - 0.2, 1 + 0.28]
QUADRANTS = [
    (1.5, 2.0, -2.56, 0.0),  # up, gaining: cut at 1.28
    (1.5, -2.0, 3.0, 3.0),  # up, losing: -w A, not cut
    (0.5, 2.0, -1.0, -1.0),  # down, losing
    (0.5, -2.0, 1.6, 0.0),  # down, gaining: cut at 0.8
    (1.25, 2.0, -2.5, -2.5),  # within the upper side alone: beyond 1.2
    (0.75, -2.0, 1.6, 0.0),  # beyond the lower side alone: within 1 - 0.28
    (1.0, 2.0, -2.0, -2.0),  # the first step is the policy gradient
    (1.0, -2.0, 2.0, 2.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), QUADRANTS)
def test_clipped_by_hand(ratio, advantage, loss, slope):
    moved, advantages = leaf(math.log(ratio)), leaf(advantage)
    found = clipped(moved, advantages, 0.2, 0.28)
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert gradient(found, moved) == pytest.approx([slope], abs=1e-6)
    assert not clipped(moved.detach(), advantages, 0.2, 0.28).requires_grad


def test_far_beyond_the_clip_there_is_no_gradient_either():
    """A log-ratio of 89 nats, which an answer of some hundred tokens can have."""
    moved = leaf(89.0, 0.0)
    found = clipped(moved, t([[1.0, 1.0]]), 0.2, 0.2)
    assert found.tolist() == [[pytest.approx(-1.2), -1.0]]
    assert gradient(found, moved) == [0.0, -1.0]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), QUADRANTS)
def test_cut_weights_always_have_a_gradient(ratio, advantage, loss, slope):
    """-w A by the log-probability, w cut: where `clipped` has a gradient within the clip it is the same one."""
    logprobs, moved = leaf(-3.0), leaf(math.log(ratio))
    found = cut_weights(logprobs, moved, t([[advantage]]), 0.2, 0.28)
    cut = min(max(ratio, 0.8), 1.28)
    assert found.item() == pytest.approx(3 * cut * advantage, abs=1e-5)
    (own,) = gradient(found, logprobs)
    assert own == pytest.approx(-cut * advantage, abs=1e-6) and abs(own) >= 1.6 - 1e-6
    assert (own == pytest.approx(slope, abs=1e-6)) == (cut == ratio)
    (none,) = torch.autograd.grad(found.sum(), moved, allow_unused=True)
    assert none is None  # the weight is a constant


def test_the_ratio_of_a_whole_response():
    # (1 + 0.5) / 2 on both tokens; one token; none
    old = t([[-2.0, -2.5, float("nan")], [-1.0, float("nan"), float("nan")], [float("nan")] * 3])
    logprobs = t([[-1.0, -2.0, -9.0], [-4.0, -9.0, -9.0], [-9.0] * 3], requires_grad=True)
    mask = t([[True, True, False], [True, False, False], [False] * 3])
    found = sequence_log_ratios(logprobs, old, mask)
    assert found.tolist() == [[0.75, 0.75, 0.0], [-3.0, 0.0, 0.0], [0.0] * 3]
    # each of n tokens has 1 / n of the mean, which n tokens read
    assert gradient(found, logprobs) == [1, 1, 0, 1, 0, 0, 0, 0, 0]


def test_truncated_weights_by_hand():
    old, sampler = leaf(-1.0, -1.0, -1.0, -1.0), t([[-1.0, -1 - math.log(1.5), -1 - math.log(3), -1 + math.log(2)]])
    found = truncated_weights(old, sampler, 2.0)
    assert found.flatten().tolist() == pytest.approx([1.0, 1.5, 2.0, 0.5], abs=1e-6)
    assert not found.requires_grad


def pair(first, second):
    return t([first], requires_grad=True), t([second], requires_grad=True)


@pytest.mark.parametrize(
    ("gap", "difference", "loss", "slope"),
    [
        (0.5, 2.0, -0.2, 0.0),  # gaining: -0.2 * 2 / 2
        (0.5, -2.0, 0.5, 1.0),  # losing: -0.5 * -2 / 2, and -d / 2
        (-0.5, 2.0, 0.5, -1.0),
        (-0.5, -2.0, -0.2, 0.0),
        (0.1, 2.0, -0.1, -1.0),
        (0.0, 2.0, 0.0, -1.0),  # the first step is the pairwise policy gradient
        (0.0, -2.0, 0.0, 1.0),
    ],
)
@pytest.mark.parametrize(("both", "weight"), [(0.0, 1.0), (math.log(2), 2.0), (-8.0, 0.1), (8.0, 10.0)])
def test_pairs_clipped_together_by_hand(gap, difference, loss, slope, both, weight):
    """Times the ratio of the pair, e^both, which is held within 10 and 1/10; one answer's gain is the other's loss."""
    first, second = pair(both / 2 + gap / 2, both / 2 - gap / 2)
    differences = t([difference], requires_grad=True)
    found = pair_clipped_together(first, second, differences, 0.2)
    assert found.item() == pytest.approx(weight * loss, abs=1e-5)
    assert gradient(found, first) == pytest.approx([weight * slope], abs=1e-5)
    assert gradient(found, second) == pytest.approx([-weight * slope], abs=1e-5)
    assert not pair_clipped_together(first.detach(), second.detach(), differences, 0.2).requires_grad


@pytest.mark.parametrize(
    ("ratios", "difference", "loss", "slopes"),
    [
        ((1.0, 1.0), 2.0, 0.0, (-1.0, 1.0)),  # the first step is the pairwise policy gradient
        # A = 2 / 2 times the other's ratio: -min(1.5 * 0.5, 1.2 * 0.5) and -min(-0.5 * 1.5, -0.8 * 1.5)
        ((1.5, 0.5), 2.0, 0.6, (0.0, 0.0)),
        # -min(-1.5 * 0.5, -1.2 * 0.5) and -min(0.5 * 1.5, 0.8 * 1.5)
        ((1.5, 0.5), -2.0, 0.0, (0.75, -0.75)),
        # -min(1.1 * 0.5, 1.1 * 0.5) and -min(-0.5 * 1.1, -0.8 * 1.1): only one of the two is beyond its clip
        ((1.1, 0.5), 2.0, 0.33, (-0.55, 0.0)),
    ],
)
def test_pairs_clipped_apart_by_hand(ratios, difference, loss, slopes):
    first, second = pair(*map(math.log, ratios))
    differences = t([difference], requires_grad=True)
    found = pair_clipped_apart(first, second, differences, 0.2)
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert gradient(found, first) + gradient(found, second) == pytest.approx(slopes, abs=1e-6)
    assert not pair_clipped_apart(first.detach(), second.detach(), differences, 0.2).requires_grad


def test_weights_of_pairs_are_bounded_constants():
    found = pair_weights(t([0.0, math.log(3), 9.0, -9.0, 200.0], requires_grad=True))
    assert found.tolist() == pytest.approx([1.0, 3.0, 10.0, 0.1, 10.0]) and not found.requires_grad
    assert pair_weights(t([1.0, -1.0]), 2.0).tolist() == [2.0, 0.5]


def test_regression_on_advantages_by_hand():
    # (0.5 - 1 / 0.5)^2 = 2.25 with slope 2 * -1.5; at A / scale nothing is left
    moved, advantages = leaf(0.5, -4.0), leaf(1.0, -2.0)
    found = advantage_regression(moved, advantages, 0.5)
    assert found.tolist() == [[2.25, 0.0]] and gradient(found, moved) == [-3.0, 0.0]
    assert not advantage_regression(moved.detach(), advantages, 0.5).requires_grad


def test_regression_on_wins_by_hand():
    # (1 - 0.25 / 0.5)^2; wins half of the time: stay, so 1^2; loses always: towards -1
    moved, wins = t([1.0, 1.0, -1.0], requires_grad=True), t([0.75, 0.5, 0.0], requires_grad=True)
    found = win_regression(moved, wins, 0.5)
    assert found.tolist() == [0.25, 1.0, 0.0] and gradient(found, moved) == [1.0, 2.0, 0.0]
    assert not win_regression(moved.detach(), wins, 0.5).requires_grad


def test_ipo_by_hand():
    # h = 3 - 1 = 2, wanted 1 / (2 * 0.5) = 1: 1; a tie: (1 + 9) / 2; the other one preferred: 9
    chosen, rejected = t([3.0] * 3), t([1.0] * 3)
    assert ipo(chosen, rejected, beta=0.5).tolist() == [1.0] * 3
    assert ipo(chosen, rejected, beta=0.5, preference=t([1.0, 0.5, 0.0])).tolist() == [1.0, 5.0, 9.0]


@pytest.mark.parametrize(("preference", "best"), [(1.0, 5.0), (0.8, 3.0), (0.5, 0.0), (0.0, -5.0)])
def test_ipo_is_least_at_a_finite_gap(preference, best):
    """At 1 / (2 beta) = 5, and at (2 q - 1) of it where people agree by q: on neither side does it run away."""
    gaps = t([best - 1, best, best + 1], requires_grad=True)
    found = ipo(gaps, torch.zeros(3), beta=0.1, preference=t([preference] * 3))
    assert gradient(found, gaps) == pytest.approx([-2.0, 0.0, 2.0], abs=1e-5)
    if preference == 1.0:
        assert torch.equal(ipo(gaps, torch.zeros(3), beta=0.1), found)


def test_leave_one_out_keeps_the_policy_gradient():
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
            loss = policy_gradient(logprobs - logprobs.detach(), advantages).mean()
            (grad,) = torch.autograd.grad(loss, logits)
            total += (probabilities[a] * probabilities[b]).detach() * -grad
    assert torch.allclose(total, exact, atol=1e-6)
