"""Each probe on tables small enough to work out by hand, or drawn from a known world."""

import math

import numpy as np
import pytest
from scipy.special import expit

from assay.audit import ScoredPairs, ScoredSamples
from assay.audit.probes import accuracy, best_of_n_curve, calibration, length, rates, sample_rates
from assay.audit.statistics import wilson


def by_name(findings):
    names = [finding.probe for finding in findings]
    assert len(names) == len(set(names))
    return {finding.probe: finding for finding in findings}


def table(difference, lengths, **columns):
    """Pairs of distinct prompts: reward difference, (tokens of chosen, tokens of rejected)."""
    chosen, rejected = zip(*lengths, strict=True)
    given = {
        "prompt_id": [f"p{i}" for i in range(len(difference))],
        "reward_chosen": difference,
        "reward_rejected": np.zeros(len(difference)),
        "length_chosen": chosen,
        "length_rejected": rejected,
    }
    return ScoredPairs(**(given | columns))


SIX = table(
    [2.0, 1.0, -1.0, 0.0, np.nan, 3.0],
    [(9, 3), (8, 4), (7, 2), (3, 9), (4, 4), (2, 5)],
    preference=[1.0, 0.9, 1.0, 1.0, 1.0, 0.5],
    subset=["x", "x", "y", "y", "y", "x"],
    truncated_chosen=[False, True, False, False, False, False],
    truncated_rejected=[False, True, True, False, False, False],
)


def test_accuracy_by_hand():
    """Five labels, the sixth is a tie: 1 + 1 + 0 + 1/2 + 0 (missing)."""
    found = by_name(accuracy(SIX))
    assert found["accuracy"].value == pytest.approx(2.5 / 5)
    assert found["accuracy"].interval == pytest.approx(wilson(2.5, 5))
    assert "1 pairs with a missing reward count as wrong" in found["accuracy"].message
    assert (found["accuracy/x"].value, found["accuracy/x"].n) == (1.0, 2)
    assert (found["accuracy/y"].value, found["accuracy/y"].n) == (pytest.approx(0.5 / 3), 3)
    # longer: 1, 1, 1, 0 and 1/2 for equal lengths
    assert found["baseline/longer"].value == pytest.approx(0.7)
    assert found["baseline/shorter"].value == pytest.approx(0.3)
    assert found["baseline/majority"].value == pytest.approx(0.7)
    assert found["baseline/gain"].value == pytest.approx(-0.2)


def test_half_credits_decide_nothing():
    """A constant reward beside a rule that is right half of the time: no difference, and nothing that speaks of one."""
    equal = table([0.0] * 40, [(10 + i % 2, 10 + (i + 1) % 2) for i in range(40)])
    gain = by_name(accuracy(equal))["baseline/gain"]
    assert gain.value == 0 and "McNemar p = 1;" in gain.message
    assert "these pairs can show no difference: they are too few" in gain.message


def test_accuracy_without_labels():
    found = by_name(accuracy(table([1.0], [(1, 2)], preference=[0.5])))
    assert found["accuracy"].n == 0
    assert math.isnan(found["accuracy"].value)


def test_rates_by_hand():
    found = by_name(rates(SIX))
    assert {name: finding.value * 6 for name, finding in found.items()} == pytest.approx(
        {"rate/nan": 1, "rate/tie": 1, "rate/truncated": 2, "rate/label_tie": 1}
    )
    assert found["rate/truncated"].message == "2 of 6 pairs with an answer cut by the context"
    samples = ScoredSamples(prompt_id=["a", "a"], reward=[np.inf, 0], length=[1, 1])
    assert by_name(sample_rates(samples))["rate/nan_samples"].value == 0.5


def test_length_by_hand():
    """Without the tie and the missing reward: three chosen are longer (right, right, wrong), one shorter (a tie)."""
    found = by_name(length(SIX))
    assert found["length/accuracy_longer"].value == pytest.approx(2 / 3)
    assert found["length/accuracy_shorter"].value == 0.5
    assert found["length/gap"].value == pytest.approx(1 / 6)
    assert found["length/gap"].n == 4
    # both orders of differences 2, 1, -1, 0 against lengths 6, 4, 5, -6: ranks from the middle are 3.5, 2, -2, 0 and
    # 3, 0.5, 1.5, -3, so (10.5 + 1 - 3)/sqrt((12.25 + 4 + 4)(9 + 0.25 + 2.25 + 9))
    assert found["length/spearman"].value == pytest.approx(8.5 / math.sqrt(20.25 * 20.5))
    assert found["length/spearman"].n == 4
    assert math.isnan(found["length/beyond"].value)


def test_length_correlation_by_hand():
    """Both orders of three pairs: differences +-1, +-2, +-3 against lengths +-2, +-1, -+3."""
    found = by_name(length(table([1.0, 2.0, 3.0], [(3, 1), (2, 1), (1, 4)])))
    # ranks from the middle: 0.5, 1.5, 2.5 against 1.5, 0.5, -2.5: (0.75 + 0.75 - 6.25)/(0.25 + 2.25 + 6.25)
    assert found["length/spearman"].value == pytest.approx(-4.75 / 8.75)


def test_length_correlation_ignores_which_side_is_chosen():
    """A reward that only knows the label, on labels that prefer longer answers, leans on length as the labels do."""
    lengths = [(9, 3)] * 30 + [(3, 9)] * 10
    found = by_name(length(table(np.ones(40), lengths)))
    assert found["length/spearman"].value == pytest.approx(0.5)  # 30 of 40 agree, 10 of 40 do not
    assert found["length/labels_spearman"].value == pytest.approx(0.5)


def drawn(n, seed, reward_of, *, long=0.0):
    """Pairs whose true reward is quality + `long` times standardised log-length; labels are Bradley-Terry."""
    rng = np.random.default_rng(seed)
    z, quality = rng.normal(size=(2, n, 2))
    tokens = np.exp(4 + 0.6 * z).astype(int) + 5
    truth = quality + long * z
    first = rng.random(n) < expit(1.7 * (truth[:, 0] - truth[:, 1]))
    order = np.where(first[:, None], [0, 1], [1, 0])
    tokens, truth, z = (np.take_along_axis(column, order, 1) for column in (tokens, truth, z))
    reward = reward_of(rng, tokens.astype(float), truth, z)
    return ScoredPairs(
        prompt_id=[f"p{i}" for i in range(n)],
        reward_chosen=reward[:, 0],
        reward_rejected=reward[:, 1],
        length_chosen=tokens[:, 0],
        length_rejected=tokens[:, 1],
    )


@pytest.mark.parametrize("shape", [lambda t: t, np.log, np.sqrt, lambda t: np.minimum(t, 60), lambda t: t**2])
def test_a_function_of_length_knows_nothing_beyond_it(shape):
    found = by_name(length(drawn(400, 1, lambda rng, tokens, truth, z: shape(tokens), long=0.5)))
    low, high = found["length/beyond"].interval
    assert low <= 0 <= high


def test_the_truth_is_known_beyond_length_at_its_slope():
    """Labels are sigmoid(1.7 d): one standard deviation of d adds 1.7 sd(d), whatever the true taste for length."""
    pairs = drawn(2000, 2, lambda rng, tokens, truth, z: truth, long=-1.0)
    found = by_name(length(pairs))
    slope = 1.7 * math.sqrt(float((pairs.reward_difference**2).mean()))
    assert found["length/beyond"].interval[0] < slope < found["length/beyond"].interval[1]
    assert found["length/overweight"].interval[0] <= 0.005


def test_overweight_measures_the_accuracy_that_length_costs():
    """A reward of quality plus 4 lengths where labels want quality alone: taking length out regains what it cost."""
    loud = by_name(length(drawn(1000, 3, lambda rng, tokens, truth, z: truth + 4 * z)))
    truth = by_name(accuracy(drawn(1000, 3, lambda rng, tokens, truth, z: truth)))
    fault = by_name(accuracy(drawn(1000, 3, lambda rng, tokens, truth, z: truth + 4 * z)))
    lost = truth["accuracy"].value - fault["accuracy"].value
    assert lost > 0.15
    assert loud["length/overweight"].value == pytest.approx(lost, abs=0.03)


def test_underweighting_length_is_not_overweight():
    found = by_name(length(drawn(1000, 4, lambda rng, tokens, truth, z: truth - 0.5 * z, long=1.5)))
    assert found["length/spearman"].value > 0
    assert found["length/overweight"].value == 0


def test_calibration_finds_the_temperature_and_mends_the_error():
    found = by_name(calibration(drawn(1500, 5, lambda rng, tokens, truth, z: 1.7 * 4 * truth)))
    assert found["calibration/temperature"].value == pytest.approx(4, rel=0.15)
    assert found["calibration/ece"].value > 0.08
    assert found["calibration/fitted/ece"].value < 0.03
    assert found["calibration/fitted/nll"].value < found["calibration/nll"].value - 0.1
    assert found["calibration/fitted/brier"].value < found["calibration/brier"].value < 0.25


def test_calibration_of_too_little_or_nothing():
    assert calibration(drawn(39, 5, lambda rng, tokens, truth, z: truth)) == []
    assert calibration(drawn(100, 5, lambda rng, tokens, truth, z: 0 * truth)) == []
    assert calibration(drawn(100, 5, lambda rng, tokens, truth, z: np.nan * truth)) == []


def test_best_of_n_curve_by_hand():
    """Two prompts of four samples; the reward of the second is upside down."""
    samples = ScoredSamples(
        prompt_id=["a"] * 4 + ["b"] * 4,
        reward=[1, 2, 3, 4, 4, 3, 2, 1],
        oracle=[1, 2, 3, 4, 1, 2, 3, 4],
        length=[10, 20, 30, 40, 10, 20, 30, 40],
    )
    found = by_name(best_of_n_curve(samples))
    # the expected maximum of 2 of 1..4 is 20/6, of 4 it is 4; upside down the oracle gives 5 - that
    assert [found[f"best_of_n/reward/{n}"].value for n in (1, 2, 4)] == pytest.approx([2.5, 10 / 3, 4])
    assert [found[f"best_of_n/oracle/{n}"].value for n in (1, 2, 4)] == pytest.approx([2.5, 2.5, 2.5])
    assert found["best_of_n/oracle_gain/4"].value == pytest.approx(0)
    assert found["best_of_n/length/4"].value == pytest.approx(25)
    assert found["oracle/agreement"].value == pytest.approx(0)
    assert "best_of_n/oracle_gain/1" not in found


def test_best_of_n_curve_counts_what_it_leaves_out():
    samples = ScoredSamples(
        prompt_id=["a"] * 3 + ["b"] * 2 + ["c"] * 2,
        reward=[1, 2, 3, 5, 7, np.nan, 0],
        oracle=[1, 2, 3, 5, np.nan, 1, 1],
        length=[1] * 7,
    )
    found = by_name(best_of_n_curve(samples))
    assert found["best_of_n/reward/2"].value == pytest.approx((8 / 3 + 7) / 2)
    assert "1 prompts with a missing reward left out" in found["best_of_n/reward/2"].message
    assert found["best_of_n/oracle/2"].value == pytest.approx(8 / 3)
    assert "2 prompts with a missing reward or oracle left out" in found["best_of_n/oracle/2"].message
    nothing = ScoredSamples(prompt_id=["a"], reward=[np.nan], length=[1])
    assert best_of_n_curve(nothing) == []
