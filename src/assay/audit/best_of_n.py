"""What best-of-n sampling would give, exactly, from N scored samples per prompt."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from assay.audit.table import FloatArray
from assay.settings import InputError


def best_of_n_kl_bound(n: int) -> float:
    """Nats between best-of-n and the policy it samples from, at most: log n - (n - 1)/n.

    Exact only when no two responses tie in reward or repeat; else an upper bound. Source: Beirami et al. 2024,
    arXiv:2401.01879.
    """
    if n < 1:
        raise InputError(f"best_of_n_kl_bound: n is {n}; give at least 1")
    return math.log(n) - (n - 1) / n


@lru_cache(maxsize=4096)
def _share_within(num_samples: int, n: int) -> FloatArray:
    """C(m, n)/C(N, n) for m = 0..N: the chance that n draws without replacement all lie among the m lowest."""
    total = math.comb(num_samples, n)
    return np.array([math.comb(m, n) / total for m in range(num_samples + 1)])


def best_of_n(reward: ArrayLike, value: ArrayLike, sizes: Sequence[int]) -> FloatArray:
    """E[value of the highest-reward response among n draws without replacement], for each n of `sizes`: [len(sizes)].

    Args:
        reward: [N], what the choice is made by; equal rewards are chosen among at random.
        value: [N], what the chosen response is worth: the reward itself, the oracle, its length.
        sizes: each n, 1 <= n <= N.

    A tie group of k samples with `cum` samples up to and with it weighs [C(cum, n) - C(cum - k, n)]/C(N, n); without
    ties that is C(i - 1, n - 1)/C(N, n) for the i-th lowest.
    Source: the unbiased estimator of Nakano et al. 2021, arXiv:2112.09332, appendix I, with ties.
    """
    reward, value = np.asarray(reward, float), np.asarray(value, float)
    if not np.isfinite(reward).all():
        raise InputError("best_of_n: a reward is NaN or infinite; leave such prompts out, and count them")
    num_samples = len(reward)
    if any(not 1 <= n <= num_samples for n in sizes):
        raise InputError(f"best_of_n: sizes {list(sizes)} for {num_samples} samples; give 1 <= n <= {num_samples}")
    _, tie, size = np.unique(reward, return_inverse=True, return_counts=True)
    means = np.bincount(tie, value) / size
    ends = np.cumsum(size)
    within = [_share_within(num_samples, n) for n in sizes]
    return np.array([float((share[ends] - share[ends - size]) @ means) for share in within])
