"""Calibration of reward differences, before and after the one temperature that fits them best."""

import numpy as np
from scipy.special import expit

from assay.audit.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    random_order,
)
from assay.audit.statistics import bootstrap_mean, cluster_bootstrap, group_index
from assay.audit.table import FloatArray, ScoredPairs, TextArray
from assay.records import Finding

MIN_PAIRS = 40  # two halves of two bins of ten


def calibration(pairs: ScoredPairs, *, seed: int = 0) -> list[Finding]:
    """Temperature, and ECE, Brier and NLL with and without it.

    Label ties count, as outcome 0.5; pairs with a missing reward do not. Each half of the prompts is
    judged with the temperature of the other half. No findings under 40 usable pairs, two prompts, or when no rewards
    differ.
    """
    pairs = pairs.select(~pairs.failed)
    prompts = pairs.prompt_id
    temperature = fit_temperature(pairs.reward_difference, pairs.preference)
    group, num_prompts = group_index(prompts)
    if len(pairs) < MIN_PAIRS or num_prompts < 2 or not np.isfinite(temperature):
        return []
    difference, outcome = random_order(pairs.reward_difference, pairs.preference, seed=seed)
    first = (np.random.default_rng(seed).permutation(num_prompts) < num_prompts / 2)[group]
    halves = [fit_temperature(difference[half], outcome[half]) for half in (first, ~first)]
    if not np.isfinite(halves).all():
        return []
    fitted = difference / np.where(first, halves[1], halves[0])
    message = "the temperature that makes sigmoid(difference / temperature) fit the labels best; 1: calibrated as it is"
    return [
        Finding(probe="calibration/temperature", value=temperature, n=len(pairs), message=message),
        *_errors("calibration", difference, outcome, prompts, "at temperature 1", seed),
        *_errors("calibration/fitted", fitted, outcome, prompts, "at the other half's temperature", seed),
    ]


def _errors(
    probe: str, difference: FloatArray, outcome: FloatArray, prompts: TextArray, when: str, seed: int
) -> list[Finding]:
    probability = expit(difference)
    estimates = {
        "ece": (
            cluster_bootstrap(
                lambda w: expected_calibration_error(probability, outcome, weights=w), prompts, seed=seed
            ),
            "mean gap between confidence and agreement, debiased",
        ),
        "brier": (bootstrap_mean((probability - outcome) ** 2, prompts, seed=seed), "Brier score; 0.25 knows nothing"),
        "nll": (
            bootstrap_mean(negative_log_likelihood(difference, outcome), prompts, seed=seed),
            "nats per pair; 0.693 knows nothing",
        ),
    }
    return [
        Finding(probe=f"{probe}/{name}", value=e.value, interval=e.interval, n=e.n, message=f"{what}, {when}")
        for name, (e, what) in estimates.items()
    ]
