"""Logistic regression with a small ridge and cluster-robust errors; what length control and its tests are fitted by."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from assay.audit.table import FloatArray


class LogisticFit(NamedTuple):
    """Coefficients [K] and their covariance [K, K]."""

    coefficients: FloatArray
    covariance: FloatArray


def fit_logistic(features: FloatArray, outcomes: FloatArray, groups: ArrayLike, *, ridge: float = 1e-2) -> LogisticFit:
    """Fit logit P = features @ coefficients; no intercept unless a column of ones is given.

    Maximises the likelihood minus ridge/2 |coefficients|^2, so separable data give finite coefficients. The covariance
    is the sandwich with scores summed by group: rows of one prompt are not independent.

    Args:
        features: [n, K], of unit scale, or the ridge means something else for each.
        outcomes: [n], probabilities in [0, 1].
        groups: [n], the prompt of each row.
        ridge: strength of the penalty.

    Source: Liang and Zeger 1986 (independence working model).
    """

    def objective(beta: FloatArray) -> float:
        logits = features @ beta
        likelihood = outcomes * log_expit(logits) + (1 - outcomes) * log_expit(-logits)
        return ridge / 2 * float(beta @ beta) - float(likelihood.sum())

    def gradient(beta: FloatArray) -> FloatArray:
        return ridge * beta - features.T @ (outcomes - expit(features @ beta))

    def hessian(beta: FloatArray) -> FloatArray:
        probability = expit(features @ beta)
        weighted = features * (probability * (1 - probability))[:, None]
        return ridge * np.eye(features.shape[1]) + features.T @ weighted

    start = np.zeros(features.shape[1])
    beta = minimize(objective, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-8}).x
    scores = features * (outcomes - expit(features @ beta))[:, None]
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    totals = np.zeros((int(group.max()) + 1, features.shape[1]))
    np.add.at(totals, group, scores)
    bread = np.linalg.inv(hessian(beta))
    return LogisticFit(beta, bread @ (totals.T @ totals) @ bread)
