"""Estimates with honest intervals: proportions, bootstraps by prompt, paired tests, rank correlation, win rates.

Every interval is 95% unless said otherwise and every random choice is seeded. Rows of one prompt are not independent:
functions that take `groups` resample, or widen by, whole prompts.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit

from assay.audit.logistic import fit_logistic
from assay.audit.table import FloatArray
from assay.records import Finding
from assay.settings import InputError

NUM_RESAMPLES = 2000
MAX_BCA_GROUPS = 1000  # the jackknife behind BCa costs groups squared, and its correction fades as 1 / groups
BATCH_CELLS = 4_000_000  # floats held at once while resampling

Interval = tuple[float, float]


class Estimate(NamedTuple):
    """A figure, its interval, and how many rows it rests on."""

    value: float
    interval: Interval
    n: int

    def finding(self, probe: str, message: str) -> Finding:
        """This figure under its name, with one sentence about it; without an interval where an end is not known."""
        interval = None if any(math.isnan(end) for end in self.interval) else self.interval
        return Finding(probe=probe, value=self.value, interval=interval, n=self.n, message=message)

    def told(self) -> str:
        """The figure in words; of too few rows what is not known is not written as a number."""
        if math.isnan(self.value):
            return f"not known from n = {self.n}"
        if any(math.isnan(end) for end in self.interval):
            return f"{self.value:.3f}  n = {self.n}, too few for an interval"
        return f"{self.value:.3f}  95% interval {self.interval[0]:.3f} to {self.interval[1]:.3f}  n = {self.n}"


def wilson(successes: float, n: float, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) when nothing was counted.

    Source: Wilson 1927; (p + z^2/2n +- z sqrt(pq/n + z^2/4n^2)) / (1 + z^2/n).
    """
    if not 0 <= successes <= n:
        raise InputError(f"wilson: {successes} successes of {n}; give 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def proportion(values: ArrayLike, groups: ArrayLike) -> Estimate:
    """The mean of values in [0, 1] with Wilson's interval, n divided by the design effect where prompts repeat.

    The design effect is the variance of the mean with prompts as units over p(1 - p)/n, at least 1; with one row per
    prompt it is 1 and this is plain Wilson. Where rows have no spread, and of a single prompt, nothing tells it, and a
    prompt counts as one row. Source: Rao and Scott 1992.
    """
    values = np.asarray(values, float)
    n = len(values)
    if n == 0:
        return Estimate(math.nan, (0.0, 1.0), 0)
    share = float(values.mean())
    group, num_groups = group_index(groups)
    effect = 1.0
    if num_groups < n:
        binomial = share * (1 - share) / n
        residual = np.bincount(group, values - share)
        clustered = float(residual @ residual) / n**2 * num_groups / max(num_groups - 1, 1)
        effect = max(1.0, clustered / binomial) if binomial > 0 and num_groups > 1 else n / num_groups
    size = n / effect
    return Estimate(share, wilson(share * size, size), n)


def group_index(groups: ArrayLike) -> tuple[NDArray[np.intp], int]:
    """Each row's group as an integer from 0, and how many groups there are."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return index, len(names)


def cluster_bootstrap(
    statistic: Callable[[FloatArray], FloatArray],
    groups: ArrayLike,
    *,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic with its BCa interval, resampling whole groups; percentile interval above 1,000 groups.

    Args:
        statistic: from weights [R, n], how often each row occurs in each of R resamples, to values [R].
        groups: [n], the prompt of each row.
        num_resamples: bootstrap resamples.
        level: coverage of the interval.
        seed: of the resampling.

    A statistic without a value gives a NaN interval; one that no resample changes gives an interval of no width.
    Source: Efron 1987 (BCa).
    """
    group, num_groups = group_index(groups)
    n = len(group)
    value = float(statistic(np.ones((1, n)))[0]) if n else math.nan
    if num_groups < 2 or not math.isfinite(value):
        return Estimate(value, (math.nan, math.nan), n)
    batch = max(1, BATCH_CELLS // n)

    def values_of(counts: NDArray) -> FloatArray:
        parts = (counts[start : start + batch] for start in range(0, len(counts), batch))
        return np.concatenate([statistic(part[:, group].astype(float)) for part in parts])

    with np.errstate(all="ignore"):
        drawn = np.concatenate([values_of(counts) for counts in _resamples(num_groups, num_resamples, seed)])
        left_out = values_of(1 - np.eye(num_groups)) if num_groups <= MAX_BCA_GROUPS else None
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, (math.nan, math.nan), n)
    low, high = np.quantile(drawn, _bca_levels(value, drawn, left_out, level))
    return Estimate(value, (float(low), float(high)), n)


def _bca_levels(value: float, drawn: FloatArray, left_out: FloatArray | None, level: float) -> FloatArray:
    """The two quantiles of the resamples to read; plain ones where the correction is not defined or not wanted."""
    plain = np.array([(1 - level) / 2, (1 + level) / 2])
    below = float((drawn < value).mean() + (drawn <= value).mean()) / 2
    if left_out is None or not 0 < below < 1 or not np.isfinite(left_out).all():
        return plain
    pull = left_out.mean() - left_out
    spread = float((pull**2).sum())
    if spread == 0:
        return plain
    acceleration = float((pull**3).sum()) / (6 * spread**1.5)
    bias = stats.norm.ppf(below)
    shifted = bias + stats.norm.ppf(plain)
    return stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))


def _resamples(num_groups: int, num_resamples: int, seed: int) -> Iterable[NDArray[np.uint16]]:
    """How often each group is drawn in each resample, in batches [R, num_groups]; kept while small."""
    if num_groups * num_resamples <= BATCH_CELLS:
        return _kept(num_groups, num_resamples, seed)
    rng, batch = np.random.default_rng(seed), max(1, BATCH_CELLS // num_groups)
    return (_drawn(rng, num_groups, min(batch, num_resamples - start)) for start in range(0, num_resamples, batch))


@lru_cache(maxsize=8)
def _kept(num_groups: int, num_resamples: int, seed: int) -> tuple[NDArray[np.uint16], ...]:
    return (_drawn(np.random.default_rng(seed), num_groups, num_resamples),)


def _drawn(rng: np.random.Generator, num_groups: int, num_resamples: int) -> NDArray[np.uint16]:
    index = rng.integers(0, num_groups, (num_resamples, num_groups))
    cells = index + np.arange(num_resamples)[:, None] * num_groups
    counts = np.bincount(cells.ravel(), minlength=num_resamples * num_groups)
    return counts.reshape(num_resamples, num_groups).astype(np.uint16)


def bootstrap_mean(values: ArrayLike, groups: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """The mean of values [n] with its cluster bootstrap interval."""
    values = np.asarray(values, float)
    return cluster_bootstrap(lambda w: w @ values / w.sum(-1), groups, level=level, seed=seed)


def paired_bootstrap(first: ArrayLike, second: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> Estimate:
    """mean(first) - mean(second) of two measurements of the same rows [n], with its cluster bootstrap interval."""
    return bootstrap_mean(np.asarray(first, float) - np.asarray(second, float), groups, seed=seed)


class McNemar(NamedTuple):
    """How many items only the first, only the second got right, and the exact two-sided p-value."""

    only_first: int
    only_second: int
    pvalue: float


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Exact test that two classifiers [n], True where right, are equally accurate on the same items.

    Source: McNemar 1947, with the binomial distribution in place of chi squared.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    pvalue = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, pvalue)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: the chance of any false alarm stays at the level. Source: Holm 1979."""
    adjusted, running = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(np.argsort(pvalues, kind="stable")):
        running = max(running, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = running
    return adjusted


def minimum_detectable_difference(n: int, discordant: float, *, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest difference of two accuracies on the same n items that McNemar's test finds with this power.

    `discordant` is the share of items on which exactly one of the two is right; infinite when not even a difference of
    that whole share would be found, as where there are no such items. Solves
    d sqrt(n) = z_level sqrt(s) + z_power sqrt(s - d^2) for d.
    Source: Connor 1987.
    """
    if not n or not discordant:
        return math.inf
    z_level, z_power = stats.norm.ppf((1 + level) / 2), stats.norm.ppf(power)
    a = z_level * math.sqrt(discordant)
    inside = a * a * n - (n + z_power**2) * (a * a - z_power**2 * discordant)
    found = (a * math.sqrt(n) + math.sqrt(max(inside, 0.0))) / (n + z_power**2)
    return float(found) if found <= discordant else math.inf


def spearman(first: ArrayLike, second: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> Estimate:
    """Spearman's rank correlation of two columns [n], ties at their mid-rank, with its cluster bootstrap interval.

    NaN when a column is constant. Every resample is ranked anew, without sorting again: a mid-rank is a cumulative
    sum of the weights.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)

    def centred(weights: FloatArray, column: FloatArray) -> FloatArray:
        return _weight_below(weights, column) - weights.sum(-1, keepdims=True) / 2

    return cluster_bootstrap(lambda w: _correlation(w, centred(w, first), centred(w, second)), groups, seed=seed)


def spearman_of_differences(first: ArrayLike, second: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> Estimate:
    """`spearman` when every row [n] counts in both orders, as (a, b) and as (-a, -b).

    So it does not depend on which member of a pair comes first. In that doubled sample the rank of a, from the middle,
    is sign(a) times the rank of |a|.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)

    def signed(weights: FloatArray, column: FloatArray) -> FloatArray:
        return np.sign(column) * _weight_below(weights, np.abs(column))

    return cluster_bootstrap(lambda w: _correlation(w, signed(w, first), signed(w, second)), groups, seed=seed)


def roc_area(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> Estimate:
    """How often a row with label True has the higher score than one with False, ties half: the area under the ROC.

    Scores, labels and groups are [n]. NaN where all labels are alike. Source: Mann & Whitney 1947.
    """
    scores, is_true = np.asarray(scores, float), np.asarray(labels, bool)

    def area(weights: FloatArray) -> FloatArray:
        positive, negative = weights * is_true, weights * ~is_true
        pairs = positive.sum(-1) * negative.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (positive * _weight_below(negative, scores)).sum(-1) / pairs

    return cluster_bootstrap(area, groups, seed=seed)


def _weight_below(weights: FloatArray, values: FloatArray) -> FloatArray:
    """Total weight of the rows below each row plus half of its ties, [R, n]: its mid-rank less 1/2."""
    _, tie = np.unique(values, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.searchsorted(tie[order], np.arange(int(tie.max()) + 1))
    totals = np.add.reduceat(weights[:, order], starts, axis=1)
    return (np.cumsum(totals, axis=1) - totals / 2)[:, tie]


def _correlation(weights: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Of columns [R, n] that are already centred; NaN where one is constant."""
    weighted = weights * x
    variances = (weighted * x).sum(-1) * (weights * y * y).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variances > 1e-9, (weighted * y).sum(-1) / np.sqrt(variances), np.nan)


def win_rate(outcomes: ArrayLike, groups: ArrayLike) -> Estimate:
    """Share of wins: outcomes [n] are 1 for a win, 0.5 for a tie, 0 for a loss; interval as `proportion`."""
    return proportion(outcomes, groups)


def length_controlled_win_rate(
    outcomes: ArrayLike, length_difference: ArrayLike, groups: ArrayLike, *, level: float = 0.95
) -> Estimate:
    """The win rate that equally long answers would have: logit P = theta + phi tanh(d / sd(d)), read at d = 0.

    The interval is the delta method on the logit, with errors robust to clusters: expit(theta +- z se). A ridge of
    0.01 keeps all-win data finite. Where all outcomes are alike length explains nothing, and the rate is the plain one
    with Wilson's interval. `length_difference` [n] is own length minus the opponent's.
    Source: Dubois et al. 2024, arXiv:2404.04475, sec. 3, without the instruction-difficulty term.
    """
    outcomes, length_difference = np.asarray(outcomes, float), np.asarray(length_difference, float)
    n = len(outcomes)
    if n == 0 or np.ptp(outcomes) == 0:
        return proportion(outcomes, groups)
    spread = float(length_difference.std()) or 1.0
    features = np.column_stack([np.ones(n), np.tanh(length_difference / spread)])
    fit = fit_logistic(features, outcomes, groups)
    theta, error = float(fit.coefficients[0]), math.sqrt(fit.covariance[0, 0])
    z = float(stats.norm.ppf((1 + level) / 2))
    return Estimate(float(expit(theta)), (float(expit(theta - z * error)), float(expit(theta + z * error))), n)
