"""Whether a reward knows when it is wrong: the error among the pairs that it is surest of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from assay.audit.table import FloatArray
from assay.settings import InputError


@dataclass(frozen=True, slots=True, eq=False)
class RiskCoverage:
    """risk [n]: share of errors among the surest coverage [n] of the pairs, coverage 1/n to 1."""

    coverage: FloatArray
    risk: FloatArray

    @property
    def area(self) -> float:
        """The mean risk over all coverages; the plain error rate where uncertainty knows nothing.

        Source: Geifman et al. 2019, arXiv:1805.08206, sec. 3 (AURC).
        """
        return float(self.risk.mean())

    def at(self, coverage: float) -> float:
        """The risk among the surest `coverage` of the pairs, rounded up to a whole pair."""
        return float(self.risk[np.searchsorted(self.coverage, coverage - 1e-12)])


def doubt(difference: ArrayLike, deviation: ArrayLike) -> FloatArray:
    """How unsure the order of each pair [P] is: the standard deviation of its reward difference over its size.

    Deviation alone calls a close race sure where all opinions are close, and a clear win unsure where they only differ
    in how clear. Equal rewards are infinitely unsure.
    """
    difference, deviation = np.abs(np.asarray(difference, float)), np.asarray(deviation, float)
    return np.divide(deviation, difference, out=np.full_like(difference, np.inf), where=difference > 0)


def risk_coverage(correct: ArrayLike, uncertainty: ArrayLike) -> RiskCoverage:
    """The error among what is kept when the most uncertain pairs are left out, one after another.

    Equally uncertain pairs are left out in random order; the risk is its expectation.

    Args:
        correct: [n], 1 for right, 0 for wrong, 0.5 where the rewards are equal.
        uncertainty: [n], in any unit.

    Raises InputError for no pairs, other shapes or NaN.
    Source: El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017, arXiv:1705.08500.
    """
    correct, uncertainty = np.asarray(correct, float), np.asarray(uncertainty, float)
    if correct.ndim != 1 or not len(correct) or correct.shape != uncertainty.shape:
        raise InputError(
            f"risk_coverage: correct has shape {correct.shape}, uncertainty {uncertainty.shape}; give one of each for "
            f"every pair"
        )
    if np.isnan(correct).any() or np.isnan(uncertainty).any():
        raise InputError("risk_coverage: NaN among its numbers; leave pairs without a reward out")
    _, block = np.unique(uncertainty, return_inverse=True)  # pairs of one uncertainty, the surest first
    expected = np.bincount(block, 1 - correct) / np.bincount(block)  # errors of one more pair out of a block
    kept = np.arange(1, len(correct) + 1)
    return RiskCoverage(kept / len(correct), np.cumsum(expected[np.sort(block)]) / kept)
