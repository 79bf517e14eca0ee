"""Error among what a reward is surest of, by hand."""

import pytest

from assay.audit.abstention import risk_coverage
from assay.settings import InputError


def test_four_pairs_by_hand():
    """Surest first: right, right, wrong, right. Risks 0/1, 0/2, 1/3, 1/4."""
    curve = risk_coverage([0, 1, 1, 1], [0.7, 0.1, 0.9, 0.2])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert curve.area == pytest.approx(7 / 48)
    assert [curve.at(share) for share in (0.5, 0.6, 1.0)] == pytest.approx([0, 1 / 3, 1 / 4])


def test_ties_count_as_their_expectation():
    """A sure right one, then three alike with one wrong and one half: errors 0, 1/2, 1, 3/2 of 1, 2, 3, 4 kept."""
    curve = risk_coverage([1, 0, 1, 0.5], [0, 1, 1, 1])
    assert curve.risk.tolist() == pytest.approx([0, 1 / 4, 1 / 3, 3 / 8])
    shuffled = risk_coverage([0.5, 1, 0, 1], [1, 0, 1, 1])
    assert shuffled.risk.tolist() == pytest.approx(curve.risk.tolist())


def test_uncertainty_that_knows_nothing_has_the_error_rate_everywhere():
    curve = risk_coverage([1, 0, 1, 0, 0], [3.0] * 5)
    assert curve.risk.tolist() == pytest.approx([0.6] * 5) and curve.area == pytest.approx(0.6)


def test_the_best_order_has_the_least_area_and_the_worst_the_most():
    correct = [1, 1, 1, 0, 0]
    best, worst = risk_coverage(correct, [1, 2, 3, 4, 5]).area, risk_coverage(correct, [5, 4, 3, 2, 1]).area
    assert best == pytest.approx((1 / 4 + 2 / 5) / 5)
    assert worst == pytest.approx((1 + 1 + 2 / 3 + 1 / 2 + 2 / 5) / 5)


@pytest.mark.parametrize(
    ("correct", "uncertainty", "told"),
    [([], [], "give one of each"), ([1, 0], [1], "give one of each"), ([1, 0], [1, float("nan")], "NaN")],
)
def test_what_cannot_be_ordered_is_refused(correct, uncertainty, told):
    with pytest.raises(InputError, match=told):
        risk_coverage(correct, uncertainty)
