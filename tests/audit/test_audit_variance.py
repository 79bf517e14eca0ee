"""Variance between and within annotators: a table by hand, planted truths, ratings that are missing."""

import math

import numpy as np
import pytest

from assay.audit.variance import variance_components
from assay.settings import InputError

NUM_ANNOTATORS, NUM_ITEMS, REPEATS = 40, 30, 2
BETWEEN, WITHIN = 0.5, 1.2


def test_a_table_by_hand():
    # Items' means 2, 3.5 and 6.5; what is left of the first annotator -1, -1.5, -.5, of the second the opposite.
    # Annotators: 6 * 1^2 = 6 with 1 degree of freedom; residual 7 - 6 = 1 with 6 - 3 - 1 = 2; (6 - .5) / 3 items.
    found = variance_components([1, 2, 6, 3, 5, 7], ["a"] * 3 + ["b"] * 3, [0, 1, 2] * 2)
    assert found.within == pytest.approx(0.5) and found.degrees_of_freedom == 2
    assert found.between == pytest.approx(5.5 / 3)


def test_a_table_with_a_hole_by_hand():
    # Without the last rating: items' means 2, 3.5 and 6, of which the third says nothing. What is left is -1 and -1.5,
    # 0 and the opposite: annotators explain 4 * 1.25^2 = 6.25 of 6.5, with 5 - 3 - 1 = 1 left for .25. Of an item that
    # both rated, an annotator's column has 2 * (1/2)^2 left, so the trace is 2 annotators * 2 items / 2 = 2.
    found = variance_components([1, 2, 6, 3, 5], ["a"] * 3 + ["b"] * 2, [0, 1, 2, 0, 1])
    assert found.within == pytest.approx(0.25) and found.degrees_of_freedom == 1
    assert found.between == pytest.approx((6.25 - 0.25) / 2)


def drawn(rng, keep=1.0):
    """Ratings R*(i) + u_a + e of every annotator and item, twice; a share `keep` of them."""
    annotator, item, _ = np.indices((NUM_ANNOTATORS, NUM_ITEMS, REPEATS)).reshape(3, -1)
    worth, level = rng.normal(0, 2, NUM_ITEMS), rng.normal(0, math.sqrt(BETWEEN), NUM_ANNOTATORS)
    ratings = worth[item] + level[annotator] + rng.normal(0, math.sqrt(WITHIN), len(item))
    kept = rng.random(len(item)) < keep
    return ratings[kept], annotator[kept], item[kept]


def standard_errors():
    """Of both estimates in a full table: its mean squares are independent, chi squared over degrees of freedom.

    E[MS_annotators] = I K between + within with A - 1, E[MS_rest] = within with n - A - I + 1.
    """
    size, free = NUM_ITEMS * REPEATS, NUM_ANNOTATORS * NUM_ITEMS * REPEATS - NUM_ANNOTATORS - NUM_ITEMS + 1
    rest = 2 * WITHIN**2 / free
    annotators = 2 * (size * BETWEEN + WITHIN) ** 2 / (NUM_ANNOTATORS - 1)
    return math.sqrt(annotators + rest) / size, math.sqrt(rest)


def test_planted_variances_are_recovered():
    found = variance_components(*drawn(np.random.default_rng(0)))
    between, within = standard_errors()
    assert abs(found.between - BETWEEN) < 3 * between and between < 0.12
    assert abs(found.within - WITHIN) < 3 * within and within < 0.04


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_the_estimates_are_unbiased_also_where_ratings_are_missing(keep):
    """Over 200 tables the mean is the truth within 4 of its standard errors; in full ones the spread is as stated."""
    rng = np.random.default_rng(1)
    found = np.array([variance_components(*drawn(rng, keep))[:2] for _ in range(200)])
    spread = found.std(0, ddof=1)
    assert (abs(found.mean(0) - [BETWEEN, WITHIN]) < 4 * spread / math.sqrt(200)).all()
    if keep == 1:
        assert spread == pytest.approx(standard_errors(), rel=0.2)  # 4 / sqrt(2 * 200)


def test_annotators_who_never_rate_the_same_items():
    with pytest.raises(InputError, match="do not tell annotators from items"):
        variance_components([1, 2, 3, 4], [0, 0, 1, 1], [0, 1, 2, 3])
    with pytest.raises(InputError, match="3 ratings, 2 annotators and 3 items"):
        variance_components([1, 2, 3], [0, 1], [0, 1, 2])
