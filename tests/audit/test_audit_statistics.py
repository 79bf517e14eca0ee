"""Statistics against hand-computed numbers, closed forms, enumeration and simulation."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from assay.audit.best_of_n import best_of_n, best_of_n_kl_bound
from assay.audit.calibration import expected_calibration_error, fit_temperature, negative_log_likelihood, random_order
from assay.audit.logistic import fit_logistic
from assay.audit.statistics import (
    bootstrap_mean,
    cluster_bootstrap,
    holm,
    length_controlled_win_rate,
    mcnemar,
    minimum_detectable_difference,
    paired_bootstrap,
    proportion,
    spearman,
    spearman_of_differences,
    wilson,
    win_rate,
)
from assay.settings import InputError


def test_wilson_by_hand():
    # 8 of 10: centre (0.8 + 3.8415/20)/1.38415 = 0.7167, half-width 1.96 sqrt(0.016 + 0.0096037)/1.38415 = 0.2266
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    # 0 of 10: the upper end is z^2/(n + z^2) = 3.8415/13.8415
    assert wilson(0, 10) == pytest.approx((0.0, 0.27754), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(InputError, match="11 successes of 10"):
        wilson(11, 10)


def test_wilson_agrees_with_scipy():
    theirs = stats.binomtest(37, 120).proportion_ci(method="wilson")
    assert wilson(37, 120) == pytest.approx((theirs.low, theirs.high))


def test_proportion_of_independent_rows_is_plain_wilson():
    assert proportion([1, 1, 0.5, 0], list("abcd")).interval == pytest.approx(wilson(2.5, 4))


def test_proportion_counts_copies_once():
    """Ten copies of each row under the same prompt carry no more than the rows themselves (up to G/(G - 1))."""
    values = np.array([1.0] * 30 + [0.0] * 10)
    copied = proportion(np.repeat(values, 10), np.repeat(np.arange(40), 10))
    low, high = wilson(30 * 39 / 40, 39)
    assert copied.interval == pytest.approx((low, high), abs=1e-9)
    assert copied.value == 0.75
    assert proportion(np.ones(400), np.repeat(np.arange(40), 10)).interval == pytest.approx(wilson(40, 40))


def test_rows_of_one_prompt_count_as_one():
    """Their spread about their own mean says nothing of how prompts differ."""
    assert proportion([1, 1, 0, 1], list("aaaa")).interval == pytest.approx(wilson(0.75, 1))
    assert proportion([1, 1], list("aa")).interval == pytest.approx(wilson(1, 1))


def test_bootstrap_of_a_mean_meets_the_normal_interval():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap_mean(values, np.arange(400))
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )
    assert found == bootstrap_mean(values, np.arange(400))


def test_bootstrap_matches_scipys_bca_on_rows():
    values = np.random.default_rng(2).exponential(size=60)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0)).confidence_interval
    assert bootstrap_mean(values, np.arange(60)).interval == pytest.approx((theirs.low, theirs.high))


def test_bootstrap_resamples_prompts_not_rows():
    values = np.random.default_rng(3).normal(size=50)
    once = bootstrap_mean(values, np.arange(50))
    copied = bootstrap_mean(np.repeat(values, 8), np.repeat(np.arange(50), 8))
    assert copied.interval == pytest.approx(once.interval)
    assert copied.n == 400


def test_bca_covers_a_skewed_mean():
    """Nominal 95%, the mean of 40 exponentials: three binomial standard errors below 0.94 is 0.87."""
    rng = np.random.default_rng(4)
    inside = 0
    for _ in range(120):
        low, high = bootstrap_mean(rng.exponential(size=40), np.arange(40)).interval
        inside += low <= 1 <= high
    assert 0.87 <= inside / 120 < 1


def test_bootstrap_without_variation_or_groups():
    assert bootstrap_mean([2.0, 2.0, 2.0], [0, 1, 2]).interval == (2.0, 2.0)
    assert np.isnan(bootstrap_mean([1.0, 2.0], ["a", "a"]).interval).all()
    assert math.isnan(cluster_bootstrap(lambda w: np.full(len(w), np.nan), [0, 1, 2]).value)


def test_many_groups_use_percentiles():
    values = np.random.default_rng(5).normal(size=1500)
    low, high = bootstrap_mean(values, np.arange(1500)).interval
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(1500), rel=0.1)


def test_paired_bootstrap_sees_what_is_shared():
    rng = np.random.default_rng(6)
    difficulty = rng.normal(0, 10, 200)
    gain = rng.normal(1, 1, 200)
    found = paired_bootstrap(difficulty + gain, difficulty, np.arange(200))
    assert found.value == pytest.approx(gain.mean())
    assert 0.7 < found.interval[0] < found.interval[1] < 1.3


def test_mcnemar_by_hand():
    first = [True] * 7 + [False] + [True] * 5
    second = [False] * 7 + [True] + [True] * 5
    # 7 against 1: p = 2 (C(8,0) + C(8,1)) / 2^8 = 18/256
    assert mcnemar(first, second) == (7, 1, pytest.approx(18 / 256))
    assert mcnemar(first, first).pvalue == 1


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_minimum_detectable_difference():
    # 20% discordant, 100 items, d = 0.1238: 10 d = 1.960 * 0.4472 + 0.8416 * sqrt(0.2 - 0.01533) = 0.8765 + 0.3617
    found = minimum_detectable_difference(100, 0.2)
    assert found == pytest.approx(0.1238, abs=5e-5)
    assert 10 * found == pytest.approx(1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.2 - found**2))
    assert minimum_detectable_difference(5, 0.2) == math.inf
    assert minimum_detectable_difference(100, 0.0) == math.inf  # two that never differ show nothing


@pytest.mark.parametrize(("outcome", "value"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize("n", [1, 10])
def test_outcomes_that_are_all_alike_have_the_plain_interval(outcome, value, n):
    found = length_controlled_win_rate(np.full(n, outcome), np.arange(n), np.arange(n))
    assert found == win_rate(np.full(n, outcome), np.arange(n)) and found.value == value
    assert found.interval[1] - found.interval[0] > 0.2


def test_minimum_detectable_difference_is_found_at_its_power():
    n, share = 400, 0.3
    difference = minimum_detectable_difference(n, share)
    rng = np.random.default_rng(7)
    wins, losses = (share + difference) / 2, (share - difference) / 2
    counts = rng.multinomial(n, [wins, losses, 1 - share], size=400)
    power = np.mean([stats.binomtest(won, won + lost).pvalue < 0.05 for won, lost, _ in counts.tolist()])
    assert 0.70 < power < 0.84  # the exact test is a little conservative


def test_spearman_ranks_ties_and_resamples_like_scipy():
    rng = np.random.default_rng(8)
    x = rng.integers(0, 6, 80).astype(float)
    y = x + rng.integers(-2, 3, 80)
    found = spearman(x, y, np.arange(80))
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        n_resamples=2000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert found.interval == pytest.approx((theirs.low, theirs.high))
    both = stats.spearmanr(np.r_[x - 3, 3 - x], np.r_[y - 3, 3 - y]).statistic
    assert spearman_of_differences(x - 3, y - 3, np.arange(80)).value == pytest.approx(both)
    assert math.isnan(spearman(np.ones(5), np.arange(5), np.arange(5)).value)


@pytest.mark.parametrize(
    "rewards", [[3.0, 1.0, 2.0, 5.0, 4.0], [1.0, 1.0, 2.0, 2.0, 2.0], [0.0] * 5, [1.0, 0, 0, 1, 3]]
)
def test_best_of_n_by_enumeration(rewards):
    """Every subset of size n, the winner drawn evenly among its highest rewards."""
    gold = np.array([0.3, -1.2, 4.0, 0.7, 2.5])
    rewards = np.array(rewards)
    for n in range(1, 6):
        outcomes = []
        for subset in map(list, combinations(range(5), n)):
            best = rewards[subset].max()
            outcomes.append(np.mean([gold[i] for i in subset if rewards[i] == best]))
        assert best_of_n(rewards, gold, [n])[0] == pytest.approx(np.mean(outcomes), abs=1e-12)


def test_best_of_n_ends_and_errors():
    reward = np.arange(300.0)
    assert best_of_n(reward, reward, [1, 300]) == pytest.approx([149.5, 299.0])
    # the expected maximum of n of 0..N-1 is n (N + 1)/(n + 1) - 1
    assert best_of_n(reward, reward, [4, 64]) == pytest.approx([4 * 301 / 5 - 1, 64 * 301 / 65 - 1])
    with pytest.raises(InputError, match="1 <= n <= 300"):
        best_of_n(reward, reward, [301])
    with pytest.raises(InputError, match="NaN"):
        best_of_n([1.0, math.nan], [1.0, 2.0], [1])


def test_kl_bound():
    assert best_of_n_kl_bound(1) == 0
    assert best_of_n_kl_bound(4) == pytest.approx(0.636294)  # 2 log 2 - 3/4
    with pytest.raises(InputError, match="at least 1"):
        best_of_n_kl_bound(0)


def test_random_order_is_fair_and_keeps_the_pair():
    difference, preference = random_order(np.full(2000, 2.0), np.full(2000, 0.9))
    first = difference > 0
    assert 0.45 < first.mean() < 0.55
    assert set(preference[first]) == {0.9}
    assert np.allclose(preference[~first], 0.1)


def test_negative_log_likelihood_by_hand():
    # sigmoid(log 3) = 3/4, sigmoid(2 log 3 / 2) the same
    assert negative_log_likelihood([math.log(3)], [1.0]) == pytest.approx([math.log(4 / 3)])
    assert negative_log_likelihood([2 * math.log(3)], [0.0], 2.0) == pytest.approx([math.log(4)])
    assert negative_log_likelihood([0.0], [0.3]) == pytest.approx([math.log(2)])


def test_temperature_closed_form():
    """Differences +-1 and a share of 0.8 right: sigmoid(1/T) = 0.8, T = 1/log 4."""
    assert fit_temperature(np.ones(10), [1.0] * 8 + [0.0] * 2) == pytest.approx(1 / math.log(4), rel=1e-4)
    assert math.isnan(fit_temperature(np.zeros(4), np.ones(4)))
    assert fit_temperature(np.ones(10), np.zeros(10)) > 100
    assert fit_temperature(np.ones(10), np.ones(10)) < 0.01


def test_temperature_is_recovered():
    rng = np.random.default_rng(9)
    difference = rng.normal(0, 6, 20000)
    labels = (rng.random(20000) < expit(difference / 3)).astype(float)
    assert fit_temperature(difference, labels) == pytest.approx(3, rel=0.05)


def test_ece_of_a_calibrated_forecast_is_small_and_debiased():
    rng = np.random.default_rng(10)
    debiased, plain = [], []
    for _ in range(100):
        probability = rng.random(200)
        outcome = (rng.random(200) < probability).astype(float)
        debiased.append(expected_calibration_error(probability, outcome)[0])
        gaps = (outcome - probability)[np.argsort(probability)].reshape(10, 20).mean(1)
        plain.append(np.abs(gaps).mean())
    assert np.mean(plain) > 0.06
    assert np.mean(debiased) < 0.6 * np.mean(plain)


def test_ece_of_a_wrong_forecast_by_hand():
    """Confidence 0.9 and 60% right in every bin: the gap is 0.3."""
    outcome = np.tile([1, 1, 1, 0, 0], 80).astype(float)
    assert expected_calibration_error(np.full(400, 0.9), outcome)[0] == pytest.approx(0.3, abs=1e-4)


def test_ece_weights_are_copies():
    rng = np.random.default_rng(11)
    probability, outcome = np.sort(rng.random(60)), rng.integers(0, 2, 60).astype(float)
    twice = np.full((1, 60), 2.0)
    found = expected_calibration_error(probability, outcome, weights=twice)
    assert found == pytest.approx(
        expected_calibration_error(np.repeat(probability, 2), np.repeat(outcome, 2), num_bins=6)
    )


def test_logistic_closed_forms():
    ones = np.ones((10, 1))
    fit = fit_logistic(ones, np.array([1.0] * 8 + [0.0] * 2), np.arange(10), ridge=1e-9)
    assert fit.coefficients == pytest.approx([math.log(4)], rel=1e-6)
    # sandwich: sum of (y - p)^2 over (n p q)^2 = 1.6/1.6^2
    assert fit.covariance[0, 0] == pytest.approx(1 / 1.6, rel=1e-5)
    copied = fit_logistic(
        np.ones((20, 1)), np.repeat([1.0] * 8 + [0.0] * 2, 2), np.repeat(np.arange(10), 2), ridge=1e-9
    )
    assert copied.covariance[0, 0] == pytest.approx(1 / 1.6, rel=1e-5)


def test_win_rate_counts_ties_half():
    assert win_rate([1, 0.5, 0.5, 0], list("abcd")).value == 0.5


def test_length_controlled_win_rate_removes_a_length_advantage():
    """Equally good answers; the judge's logit is 1.5 tanh(d/sd) and our answers are longer."""
    rng = np.random.default_rng(12)
    difference = rng.normal(80, 100, 3000)
    chance = expit(1.5 * np.tanh(difference / difference.std()))
    outcomes = (rng.random(3000) < chance).astype(float)
    raw, controlled = (
        win_rate(outcomes, np.arange(3000)),
        length_controlled_win_rate(outcomes, difference, np.arange(3000)),
    )
    assert raw.value > 0.65
    assert controlled.value == pytest.approx(0.5, abs=0.04)
    assert controlled.interval[0] < 0.5 < controlled.interval[1]


def test_length_controlled_win_rate_covers_the_truth():
    rng = np.random.default_rng(13)
    truth, inside = float(expit(0.4)), 0
    for _ in range(100):
        difference = rng.normal(30, 50, 200)
        outcomes = (rng.random(200) < expit(0.4 + np.tanh(difference / difference.std()))).astype(float)
        low, high = length_controlled_win_rate(outcomes, difference, np.arange(200)).interval
        inside += low <= truth <= high
    assert 0.88 <= inside / 100 < 1


def test_length_controlled_win_rate_of_equal_lengths_and_all_wins():
    outcomes = [1.0] * 7 + [0.0] * 3
    assert length_controlled_win_rate(outcomes, [0] * 10, range(10)).value == pytest.approx(0.7, abs=1e-3)
    assert 0.95 < length_controlled_win_rate(np.ones(50), np.arange(50), np.arange(50)).value <= 1
