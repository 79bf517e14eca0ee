"""Pressure without training: what the reward, the oracle and the length do when the best of n samples is taken."""

import math

import numpy as np
from scipy.stats import rankdata

from assay.audit.best_of_n import best_of_n, best_of_n_kl_bound
from assay.audit.statistics import bootstrap_mean
from assay.audit.table import FloatArray, ScoredSamples
from assay.records import Finding


def best_of_n_curve(samples: ScoredSamples, *, seed: int = 0) -> list[Finding]:
    """Means over prompts at n = 1, 2, 4, ... up to the fewest samples that any prompt has, intervals by prompt.

    Prompts with a missing reward are left out, and counted in the message; oracle figures use the prompts whose oracle
    is known for every sample. `oracle_gain/n` is the oracle at n minus the oracle at 1 on the same prompts, and
    `oracle/agreement` the mean Spearman correlation of reward and oracle within a prompt, 0 where either is constant.
    """
    prompts = [np.flatnonzero(samples.prompt_id == name) for name in dict.fromkeys(samples.prompt_id)]
    usable = [rows for rows in prompts if not samples.failed[rows].any()]
    if not usable:
        return []
    fewest = min(len(rows) for rows in usable)
    sizes = [2**power for power in range(int(math.log2(fewest)) + 1)]
    lost = len(prompts) - len(usable)
    note = f"; {lost} prompts with a missing reward left out" if lost else ""
    findings = _curve("reward", samples.reward, usable, samples, sizes, note, seed)
    findings += _curve("length", samples.length.astype(float), usable, samples, sizes, note, seed)
    known = [rows for rows in usable if np.isfinite(samples.oracle[rows]).all()]
    if not known:
        return findings
    lost = len(prompts) - len(known)
    note = f"; {lost} prompts with a missing reward or oracle left out" if lost else ""
    findings += _curve("oracle", samples.oracle, known, samples, sizes, note, seed)
    values = np.array([best_of_n(samples.reward[rows], samples.oracle[rows], sizes) for rows in known])
    for column, n in list(enumerate(sizes))[1:]:
        gain = bootstrap_mean(values[:, column] - values[:, 0], np.arange(len(known)), seed=seed)
        message = f"what taking the best of {n} by reward adds to the oracle{note}"
        findings.append(gain.finding(f"best_of_n/oracle_gain/{n}", message))
    if fewest > 1:
        agreement = [_rank_correlation(samples.reward[rows], samples.oracle[rows]) for rows in known]
        found = bootstrap_mean(agreement, np.arange(len(known)), seed=seed)
        message = f"mean rank correlation of reward and oracle among the samples of a prompt{note}"
        findings.append(found.finding("oracle/agreement", message))
    return findings


def _curve(
    name: str, value: FloatArray, prompts: list, samples: ScoredSamples, sizes: list[int], note: str, seed: int
) -> list[Finding]:
    values = np.array([best_of_n(samples.reward[rows], value[rows], sizes) for rows in prompts])
    findings = []
    for column, n in enumerate(sizes):
        mean = bootstrap_mean(values[:, column], np.arange(len(prompts)), seed=seed)
        message = f"{name} of the best of {n} by reward, at most {best_of_n_kl_bound(n):.2f} nats from the policy{note}"
        findings.append(mean.finding(f"best_of_n/{name}/{n}", message))
    return findings


def _rank_correlation(first: FloatArray, second: FloatArray) -> float:
    x, y = (ranks - ranks.mean() for ranks in (rankdata(first), rankdata(second)))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else 0.0
