"""Whether the reward follows length, and whether the labels justify it.

Every pair counts in both orders, so that a figure about length cannot borrow from the fact that chosen comes first.
Labels are modelled as Bradley-Terry with reward(x) = beta * r(x) + f(length of x), f any piecewise linear function of
the length's rank plus the length and its logarithm: what f explains, length explains.
"""

import math

import numpy as np

from assay.audit.logistic import fit_logistic
from assay.audit.statistics import (
    Estimate,
    cluster_bootstrap,
    group_index,
    paired_bootstrap,
    proportion,
    spearman_of_differences,
)
from assay.audit.table import BoolArray, FloatArray, ScoredPairs, TextArray
from assay.records import Finding

MIN_PAIRS = 50  # for models with half a dozen coefficients
NUM_FOLDS = 5
KNOTS = (0.0, 0.25, 0.5, 0.75, 0.9)  # quantiles of the lengths at which f may bend
MIN_REWARD_SHARE = 0.01  # below this share of its variance, what length leaves of a reward is rounding
Z95 = 1.959964


def length(pairs: ScoredPairs, *, seed: int = 0) -> list[Finding]:
    """Correlation with length, accuracy with and against length, and what the reward knows beyond it.

    Uses pairs with a label and both rewards. `length/beyond` (log-odds per standard deviation of the reward difference
    at equal length) and `length/overweight` (accuracy lost by weighing length more than the labels do) need 50 such
    pairs of unequal length, and are NaN below.
    """
    pairs = pairs.select(pairs.labelled & ~pairs.failed)
    difference, lengths, prompts = pairs.reward_difference, pairs.length_difference.astype(float), pairs.prompt_id
    labels = 2 * pairs.preference - 1
    correlation = spearman_of_differences(difference, lengths, prompts, seed=seed)
    findings = [
        correlation.finding("length/spearman", "rank correlation of reward difference and length difference"),
        spearman_of_differences(labels, lengths, prompts, seed=seed).finding(
            "length/labels_spearman", "the same for the labels themselves"
        ),
    ]
    findings += _by_side(pairs, lengths, seed)
    beyond = overweight = Estimate(math.nan, (math.nan, math.nan), len(pairs))
    if int((lengths != 0).sum()) >= MIN_PAIRS and difference.any():
        features = _length_features(pairs)
        beyond = _beyond(difference, features, pairs.preference, prompts)
        overweight = _overweight(difference, features, lengths, pairs, correlation.value, seed)
    return [
        *findings,
        beyond.finding("length/beyond", "log-odds that one standard deviation of reward adds at equal length"),
        overweight.finding("length/overweight", "accuracy lost by weighing length more than the labels do"),
    ]


def _by_side(pairs: ScoredPairs, lengths: FloatArray, seed: int) -> list[Finding]:
    correct, prompts = pairs.correct, pairs.prompt_id
    longer, shorter = lengths > 0, lengths < 0
    findings = []
    for name, side in (("longer", longer), ("shorter", shorter)):
        found = proportion(correct[side], prompts[side])
        message = f"accuracy on the {found.n} pairs whose chosen answer is the {name}"
        findings.append(found.finding(f"length/accuracy_{name}", message))
    gap = Estimate(math.nan, (math.nan, math.nan), int((longer | shorter).sum()))
    if longer.any() and shorter.any():
        gap = _gap(correct, longer, shorter, prompts, seed=seed)
    return [*findings, gap.finding("length/gap", "the former minus the latter")]


def _gap(correct: FloatArray, longer: BoolArray, shorter: BoolArray, prompts: TextArray, seed: int) -> Estimate:
    def statistic(weights: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            first, second = ((weights[:, s] @ correct[s]) / weights[:, s].sum(-1) for s in (longer, shorter))
        return first - second

    unequal = int((longer | shorter).sum())
    return cluster_bootstrap(statistic, prompts, seed=seed)._replace(n=unequal)


def _length_features(pairs: ScoredPairs) -> FloatArray:
    """Differences of a basis of functions of length, [P, at most 7], each of unit root mean square."""
    both = np.concatenate([pairs.length_chosen, pairs.length_rejected])
    ordered = np.sort(both)
    ranks = (np.searchsorted(ordered, both, "left") + np.searchsorted(ordered, both, "right")) / (2 * len(both))
    basis = np.column_stack([both, np.log1p(both), *(np.maximum(ranks - knot, 0) for knot in KNOTS)])
    features = basis[: len(pairs)] - basis[len(pairs) :]
    scale = np.sqrt((features**2).mean(0))
    return features[:, scale > 1e-9] / scale[scale > 1e-9]


def _beyond(difference: FloatArray, features: FloatArray, preference: FloatArray, prompts: TextArray) -> Estimate:
    """The coefficient of what length leaves of the reward, beside the best function of length."""
    rest = difference - features @ np.linalg.lstsq(features, difference, rcond=None)[0]
    rest_size, size = (math.sqrt(float((column**2).mean())) for column in (rest, difference))
    if rest_size**2 < MIN_REWARD_SHARE * size**2:
        return Estimate(0.0, (0.0, 0.0), len(difference))
    fit = fit_logistic(np.column_stack([rest / rest_size, features]), preference, prompts)
    slope, error = float(fit.coefficients[0]), math.sqrt(fit.covariance[0, 0])
    scale = size / rest_size
    return Estimate(slope * scale, ((slope - Z95 * error) * scale, (slope + Z95 * error) * scale), len(difference))


def _overweight(
    difference: FloatArray,
    features: FloatArray,
    lengths: FloatArray,
    pairs: ScoredPairs,
    correlation: float,
    seed: int,
) -> Estimate:
    """Accuracy that correcting the reward for length adds on prompts unseen by the fit; 0 where it would add length."""
    columns = np.column_stack([difference / math.sqrt(float((difference**2).mean())), features])
    whole = fit_logistic(columns, pairs.preference, pairs.prompt_id).coefficients
    if float((features @ whole[1:]) @ lengths) * correlation >= 0:
        return Estimate(0.0, (0.0, 0.0), len(pairs))
    group, num_prompts = group_index(pairs.prompt_id)
    fold = (np.random.default_rng(seed).permutation(num_prompts) % NUM_FOLDS)[group]
    corrected = np.zeros(len(pairs))
    for held in range(NUM_FOLDS):
        out, rest = fold == held, fold != held
        if out.any() and rest.any():
            fit = fit_logistic(columns[rest], pairs.preference[rest], pairs.prompt_id[rest])
            corrected[out] = columns[out] @ fit.coefficients
    right = np.where(corrected > 0, 1.0, np.where(corrected == 0, 0.5, 0.0))
    return paired_bootstrap(right, pairs.correct, pairs.prompt_id, seed=seed)
