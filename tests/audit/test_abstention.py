"""Error among what a reward is surest of, by hand."""

import numpy as np
import pytest

from assay.audit.abstention import doubt, risk_coverage
from assay.audit.probes import abstention
from assay.audit.table import ScoredPairs
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


def test_doubt_is_deviation_over_difference():
    assert doubt([2, -4, 0, 0], [1, 1, 1, 0]).tolist() == [0.5, 0.25, float("inf"), float("inf")]
    assert risk_coverage([1, 0.5], doubt([2, 0], [1, 0])).risk.tolist() == [0, 0.25]


def pairs(uncertainty, chosen=(2.0, 1.0, 0.5, 0.0)):
    """Right, right, wrong, a tie of the rewards; all against a reward of 0, the third against 1."""
    told = {"uncertainty": np.array(uncertainty)} if uncertainty else {}
    return ScoredPairs(
        prompt_id=np.array(list("abcd")),
        reward_chosen=np.array(chosen),
        reward_rejected=np.array([0.0, 0.0, 1.0, 0.0]),
        length_chosen=np.ones(4),
        length_rejected=np.ones(4),
        **told,
    )


def test_the_audit_says_what_abstaining_would_save():
    """Doubts 1/2, 1, 2 and infinity: risks 0, 0, 1/3, 3/8."""
    area, half = abstention(pairs([1.0, 1.0, 1.0, 1.0]))
    assert (area.probe, half.probe) == ("abstention/area", "abstention/surer_half")
    assert area.value == pytest.approx((1 / 3 + 3 / 8) / 4) and half.value == 0 and area.n == 4
    assert "0.375 if uncertainty knew nothing" in area.message
    assert abstention(pairs(None)) == []
    assert abstention(pairs([1.0] * 4, (2.0, 1.0, 0.5, float("nan"))))[0].n == 3


@pytest.mark.parametrize(
    ("correct", "uncertainty", "told"),
    [([], [], "give one of each"), ([1, 0], [1], "give one of each"), ([1, 0], [1, float("nan")], "NaN")],
)
def test_what_cannot_be_ordered_is_refused(correct, uncertainty, told):
    with pytest.raises(InputError, match=told):
        risk_coverage(correct, uncertainty)
