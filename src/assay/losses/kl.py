"""Estimators of KL(pi || pi_ref) from tokens that pi sampled, in nats, and what keeps the KL where it should be.

Their values are not their gradients: as a loss, k2 has the gradient of KL(pi || pi_ref), k3 that of KL(pi_ref || pi),
and the mean of k1's gradient is 0. In a loss a token pays for its own divergence only; in a reward, where nothing is
differentiated and k1 is exact, it pays for where it leads to as well.
"""

import torch

from assay.shapes import TokenFloat


def k1(logprobs: TokenFloat, ref_logprobs: TokenFloat) -> TokenFloat:
    """log pi - log pi_ref: unbiased, signed.

    Source: Schulman 2020, "Approximating KL divergence", estimator k1.
    """
    return logprobs - ref_logprobs


def k2(logprobs: TokenFloat, ref_logprobs: TokenFloat) -> TokenFloat:
    """(log pi - log pi_ref)^2 / 2: biased, never negative; its gradient is that of KL(pi || pi_ref).

    Source: Schulman 2020, "Approximating KL divergence", estimator k2.
    """
    return (logprobs - ref_logprobs) ** 2 / 2


def k3(logprobs: TokenFloat, ref_logprobs: TokenFloat) -> TokenFloat:
    """u - 1 - log u with u = pi_ref / pi: unbiased, never negative.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    log_u = ref_logprobs - logprobs
    return torch.expm1(log_u) - log_u


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def adapted(coef: float, kl: float, target: float, *, num: int, horizon: float) -> float:
    """The coefficient after `num` responses whose mean KL was `kl` nats: up where that is above the target.

    coef (1 + e min(1, num / horizon)), e = clip(kl / target - 1, -0.2, 0.2): a horizon shorter than what was seen is
    taken for as long, or the coefficient could turn negative.

    Source: Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2; the horizon is their code's.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return coef * (1 + error * min(1.0, num / horizon))
