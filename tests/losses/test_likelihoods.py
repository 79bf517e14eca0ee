"""Ties, rankings, ratings and utilities that differ: probabilities that sum to 1, special cases, hand computations."""

import itertools
import math

import pytest
import torch

from assay.losses.preference import (
    bradley_terry,
    by_annotator,
    categorical,
    davidson,
    deviation,
    mean_variance,
    rao_kupper,
    thurstone,
)  # fmt: skip
from assay.losses.ranking import best_of_k, by_ranking, kwise_bradley_terry, plackett_luce
from assay.losses.rating import binary, increasing, log_difference_of_sigmoids, ordinal, regression

t = torch.tensor


def d(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_thurstone_by_hand():
    # d = 1, scale 1: Phi(1 / sqrt 2) = 0.760250; scale 0.5: Phi(sqrt 2) = 0.921350
    assert thurstone(d(2.0), d(1.0)).item() == pytest.approx(-math.log(0.7602499), abs=1e-6)
    assert thurstone(d(2.0), d(1.0), scale=0.5).item() == pytest.approx(-math.log(0.9213504), abs=1e-6)


def test_thurstone_far_in_the_tail_stays_finite():
    rewards = torch.tensor([-60.0], requires_grad=True)
    loss = thurstone(rewards, t([0.0])).sum()
    loss.backward()
    assert math.isfinite(loss.item()) and rewards.grad.item() < 0


def outcome(loss, *args):
    """P(first), P(second), P(tie)."""
    return [math.exp(-loss(*args, preference=d(p)).item()) for p in (1.0, 0.0, 0.5)]


@pytest.mark.parametrize("difference", [-2.0, 0.0, 0.7])
@pytest.mark.parametrize("parameter", [0.1, 1.3])
@pytest.mark.parametrize("loss", [rao_kupper, davidson])
def test_the_three_outcomes_sum_to_one(loss, difference, parameter):
    assert sum(outcome(loss, d(difference), d(0.0), d(parameter)[0])) == pytest.approx(1, abs=1e-12)


def test_rao_kupper_without_a_threshold_is_bradley_terry():
    """In the limit: at 0 itself a tie has no logarithm, and the likelihood's threshold is positive."""
    preference = d(1.0, 0.0)
    ours = rao_kupper(d(1.5, 1.5), d(0.2, 0.2), d(1e-12)[0], preference)
    assert torch.allclose(ours, bradley_terry(d(1.5, 1.5), d(0.2, 0.2), preference=preference), atol=1e-9)


def test_rao_kupper_by_hand():
    # pi = (e^1, e^0), theta = e^0.5: first = e / (e + e^0.5) = 0.622459, second = 1 / (1 + e^1.5) = 0.182426
    first, second, tie = outcome(rao_kupper, d(1.0), d(0.0), d(0.5)[0])
    assert (first, second, tie) == pytest.approx((0.622459, 0.182426, 0.195115), abs=1e-6)


def test_davidson_by_hand():
    # e^.5 = 1.648721, e^-.5 = .606531, nu = 2: over 4.255252
    first, second, tie = outcome(davidson, d(1.0), d(0.0), d(math.log(2.0))[0])
    assert (first, second, tie) == pytest.approx((0.387456, 0.142537, 0.470007), abs=1e-6)


def test_davidson_without_ties_is_bradley_terry():
    ours = davidson(d(1.5), d(0.2), d(-40.0)[0], preference=d(0.0))
    assert torch.allclose(ours, bradley_terry(d(1.5), d(0.2), preference=d(0.0)), atol=1e-9)


def test_a_soft_preference_mixes_the_outcomes_beside_it():
    parts = [rao_kupper(d(1.0), d(0.0), d(0.5)[0], preference=d(p)).item() for p in (1.0, 0.5)]
    between = rao_kupper(d(1.0), d(0.0), d(0.5)[0], preference=d(0.8)).item()
    assert between == pytest.approx(0.6 * parts[0] + 0.4 * parts[1])


def test_mean_variance_by_hand():
    # deviations ln(1 + e^.3) + .001 and ln(1 + e^-.4) + .001, together .997920; Phi(.8 / .997920) = .788627
    chosen, rejected = d(1.0, 0.3)[None], d(0.2, -0.4)[None]
    assert deviation(torch.cat([chosen, rejected])).tolist() == pytest.approx([0.855355, 0.514015], abs=1e-6)
    assert mean_variance(chosen, rejected).exp().reciprocal().item() == pytest.approx(0.788627, abs=1e-6)


def test_categorical_by_hand():
    # p = (.5, .5), q = (.25, .75): P(1 over 0) = .125, ties (.125 + .375) / 2 = .25, so .375
    chosen, rejected = d(0.5, 0.5).log()[None], d(0.25, 0.75).log()[None]
    assert categorical(chosen, rejected).item() == pytest.approx(-math.log(0.375), abs=1e-9)
    assert categorical(chosen, rejected, preference=d(0.0)).item() == pytest.approx(-math.log(0.625), abs=1e-9)


def test_annotators_by_hand():
    # log-temperatures 0 and 2, less their mean: betas e and 1 / e; the differences are 1 and 2, the biases .5 and -.3.
    # first: e + .5 = 3.218282, sigmoid .961516; shown second: e - .5 = 2.218282, .901879; order not known: e, .938097
    # second annotator, difference 2, shown second: 2 / e + .3 = 1.035759, .738031
    annotator, temperature, bias = t([0, 0, 0, 1]), d(0.0, 2.0), d(0.5, -0.3)
    chosen, rejected, shown_first = d(2.0, 2.0, 2.0, 2.0), d(1.0, 1.0, 1.0, 0.0), d(1.0, -1.0, 0.0, -1.0)
    found = by_annotator(chosen, rejected, annotator, temperature, bias, shown_first)
    assert (-found).exp().tolist() == pytest.approx([0.961516, 0.901879, 0.938097, 0.738031], abs=1e-6)


def test_annotators_who_do_not_differ_are_bradley_terry():
    chosen, rejected, none = d(1.5, -0.4), d(0.2, 0.3), d(0.0, 0.0)
    found = by_annotator(chosen, rejected, t([0, 1]), d(0.7, 0.7), none, d(1.0, -1.0), preference=d(1.0, 0.5))
    assert torch.allclose(found, bradley_terry(chosen, rejected, preference=d(1.0, 0.5)))


def test_a_tie_does_not_say_who_was_chosen():
    """Which response of a tie is called chosen is arbitrary, and which was shown first goes with it."""
    args = t([0]), d(0.4), d(0.8)
    one = by_annotator(d(1.0), d(0.3), *args, d(1.0), preference=d(0.5))
    other = by_annotator(d(0.3), d(1.0), *args, d(-1.0), preference=d(0.5))
    assert one.item() == pytest.approx(other.item())


def rankings(size, *, seed=0):
    rewards = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orders = list(itertools.permutations(range(size)))
    return rewards, torch.stack([rewards[list(order)] for order in orders]), orders


@pytest.mark.parametrize("size", [2, 3, 4])
def test_plackett_luce_probabilities_sum_to_one(size):
    _, rows, _ = rankings(size)
    assert torch.exp(-plackett_luce(rows, torch.ones_like(rows, dtype=torch.bool))).sum().item() == pytest.approx(1)


def test_plackett_luce_of_two_is_bradley_terry():
    rows = d(0.3, 1.2)[None]
    assert plackett_luce(rows, torch.ones(1, 2, dtype=torch.bool)).item() == pytest.approx(
        bradley_terry(d(0.3), d(1.2)).item()
    )


@pytest.mark.parametrize("size", [2, 3])
def test_plackett_luce_marginals_of_a_subset_are_its_own_probabilities(size):
    """The probability of an order of some of four, summed over all orders of the four, is that of the some alone."""
    rewards, rows, orders = rankings(4)
    probabilities = torch.exp(-plackett_luce(rows, torch.ones_like(rows, dtype=torch.bool)))
    for some in itertools.permutations(range(4), size):
        within = [
            p for p, order in zip(probabilities, orders, strict=True) if tuple(o for o in order if o in some) == some
        ]
        alone = plackett_luce(rewards[list(some)][None], torch.ones(1, size, dtype=torch.bool))
        assert sum(within).item() == pytest.approx(math.exp(-alone.item()))


def test_best_of_k_sums_the_rankings_that_begin_with_it():
    rewards, rows, orders = rankings(4)
    probabilities = torch.exp(-plackett_luce(rows, torch.ones_like(rows, dtype=torch.bool)))
    first = sum(p for p, order in zip(probabilities, orders, strict=True) if order[0] == 2)
    best = best_of_k(rewards[[2, 0, 1, 3]][None], torch.ones(1, 4, dtype=torch.bool))
    assert math.exp(-best.item()) == pytest.approx(first.item())


def test_kwise_is_the_mean_over_pairs():
    rows, ranks = d(2.0, 1.0, 0.5)[None], t([[0, 1, 2]])
    # -log sigmoid of 1, 1.5 and .5: .313262, .201413, .474077
    full = torch.ones(1, 3, dtype=torch.bool)
    assert kwise_bradley_terry(rows, ranks, full).item() == pytest.approx(0.329584, abs=1e-6)
    tied = kwise_bradley_terry(rows, t([[0, 1, 1]]), full)
    assert tied.item() == pytest.approx((0.313262 + 0.201413) / 2, abs=1e-6)


@pytest.mark.parametrize("loss", [plackett_luce, best_of_k])
def test_what_is_not_present_changes_nothing(loss):
    alone = loss(d(2.0, 1.0)[None], torch.ones(1, 2, dtype=torch.bool))
    padded = d(2.0, 1.0, 9.0)[None].requires_grad_()
    found = loss(padded, t([[True, True, False]]))
    found.sum().backward()
    assert found.item() == pytest.approx(alone.item()) and padded.grad[0, 2].item() == 0
    assert torch.isfinite(padded.grad).all()


def test_rows_are_sorted_into_rankings():
    values, present = by_ranking(t([1.0, 2.0, 3.0, 4.0, 5.0]), t([0, 0, 1, 1, 1]))
    assert values.tolist() == [[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]
    assert present.tolist() == [[True, True, False], [True, True, True]]


def test_regression_and_binary_by_hand():
    assert regression(d(1.5), d(1.0)).item() == 0.25
    # sigmoid(2) = .880797
    assert binary(d(2.0, 2.0), d(1.0, 0.0)).tolist() == pytest.approx([0.126928, 2.126928], abs=1e-6)


@pytest.mark.parametrize("reward", [-3.0, 0.0, 1.7])
def test_levels_of_a_scale_sum_to_one(reward):
    thresholds = increasing(d(-1.0, 0.3, -2.0))
    rewards = torch.full((4,), reward, dtype=torch.float64)
    assert torch.exp(-ordinal(rewards, thresholds, torch.arange(4))).sum().item() == pytest.approx(1, abs=1e-12)


def test_two_levels_are_binary():
    found = ordinal(d(0.7, 0.7), d(0.0), t([0, 1]))
    assert torch.allclose(found, binary(d(0.7, 0.7), d(0.0, 1.0)))


def test_ordinal_has_a_gradient_at_both_ends():
    rewards = d(0.3, 0.3, 0.3).requires_grad_()
    free = d(-0.5, 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, f: ordinal(r, increasing(f), t([0, 1, 2])), (rewards, free))


def test_a_difference_of_sigmoids_far_out_does_not_cancel():
    # sigmoid(-39.9) - sigmoid(-40) = e^-40 (e^0.1 - 1), to 1e-17
    found = log_difference_of_sigmoids(d(-39.9), d(-40.0)).item()
    assert found == pytest.approx(-40 + math.log(math.expm1(0.1)), abs=1e-9)
