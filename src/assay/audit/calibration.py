"""Whether a reward difference means what Bradley-Terry says: P(first preferred) = sigmoid(difference / temperature)."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_expit
from scipy.stats import norm

from assay.audit.table import FloatArray

NUM_BINS = 10
MIN_ROWS_PER_BIN = 10
LOG_TEMPERATURE_RANGE = 7.0  # natural logs either side of the differences' own scale


def random_order(difference: ArrayLike, preference: ArrayLike, *, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Reward differences and labels [P] as if each pair had been shown as A and B in random order.

    With chosen always first, every outcome is 1 and calibration says nothing.
    """
    difference, preference = np.asarray(difference, float), np.asarray(preference, float)
    swap = np.random.default_rng(seed).random(len(difference)) < 0.5
    return np.where(swap, -difference, difference), np.where(swap, 1 - preference, preference)


def negative_log_likelihood(difference: ArrayLike, preference: ArrayLike, temperature: float = 1.0) -> FloatArray:
    """Per pair, in nats, [P]: -y log sigmoid(d/T) - (1 - y) log sigmoid(-d/T)."""
    logits, preference = np.asarray(difference, float) / temperature, np.asarray(preference, float)
    return -preference * log_expit(logits) - (1 - preference) * log_expit(-logits)


def fit_temperature(difference: ArrayLike, preference: ArrayLike) -> float:
    """The temperature T with the least mean negative log-likelihood of sigmoid(d/T).

    Searched within a factor e^7 of the differences' root mean square: a reward that is always right wants 0, one that
    is worse than chance wants infinity, and both get the end of that range. NaN when all differences are 0.
    Source: Guo et al. 2017, arXiv:1706.04599, sec. 4.2.
    """
    difference, preference = np.asarray(difference, float), np.asarray(preference, float)
    scale = math.sqrt(float(np.mean(difference**2))) if len(difference) else 0.0
    if scale == 0:
        return math.nan
    found = minimize_scalar(
        lambda log_t: float(negative_log_likelihood(difference, preference, scale * math.exp(log_t)).mean()),
        bounds=(-LOG_TEMPERATURE_RANGE, LOG_TEMPERATURE_RANGE),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return scale * math.exp(float(found.x))  # pyright: ignore[reportAttributeAccessIssue] OptimizeResult


def expected_calibration_error(
    probability: ArrayLike, outcome: ArrayLike, *, weights: ArrayLike | None = None, num_bins: int = NUM_BINS
) -> FloatArray:
    """Debiased ECE over equal-mass bins, for each row of weights: [R] (R = 1 when no weights are given).

    ECE = sum_b n_b/n |mean outcome - mean probability|; noise alone makes it positive, by E|N(gap, s)| - |gap| in each
    bin with s the standard error of its gap. That is subtracted, which removes about half of a calibrated forecast's
    ECE (the measured gap stands in for the true one), and the result cut at 0.

    Args:
        probability: [n], predicted.
        outcome: [n], 0 or 1, or the label's own probability.
        weights: [R, n], how often each row occurs in each resample.
        num_bins: at most; fewer when a bin would hold under 10 rows.

    Source: Kumar et al. 2019, arXiv:1909.10155 (the l1 case by a Gaussian approximation).
    """
    probability, outcome = np.asarray(probability, float), np.asarray(outcome, float)
    n = len(probability)
    w = np.ones((1, n)) if weights is None else np.asarray(weights, float)
    order = np.argsort(probability, kind="stable")
    num_bins = max(1, min(num_bins, n // MIN_ROWS_PER_BIN))
    starts = np.array([part[0] for part in np.array_split(np.arange(n), num_bins)])
    gap_of_row, w = (outcome - probability)[order], w[:, order]
    count = np.add.reduceat(w, starts, axis=1)
    gap = np.add.reduceat(w * gap_of_row, starts, axis=1) / np.maximum(count, 1)
    squares = np.add.reduceat(w * gap_of_row**2, starts, axis=1) / np.maximum(count, 1)
    error = np.sqrt(np.maximum(squares - gap**2, 1e-18) / np.maximum(count - 1, 1))
    size = np.abs(gap)
    # the mean of |N(gap, error)|, the folded normal
    expected = error * math.sqrt(2 / math.pi) * np.exp(-((gap / error) ** 2) / 2) + size * (
        1 - 2 * norm.cdf(-size / error)
    )
    share = count / count.sum(-1, keepdims=True)
    return np.maximum((share * (2 * size - expected)).sum(-1), 0.0)
