"""Estimators of KL(pi || pi_ref) from tokens that pi sampled, in nats."""

import torch

from assay.shapes import TokenFloat


def k1(logprobs: TokenFloat, ref_logprobs: TokenFloat) -> TokenFloat:
    """log pi - log pi_ref: unbiased, signed.

    Source: Schulman 2020, "Approximating KL divergence", estimator k1.
    """
    return logprobs - ref_logprobs


def k3(logprobs: TokenFloat, ref_logprobs: TokenFloat) -> TokenFloat:
    """u - 1 - log u with u = pi_ref / pi: unbiased, never negative.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    log_u = ref_logprobs - logprobs
    return torch.expm1(log_u) - log_u
