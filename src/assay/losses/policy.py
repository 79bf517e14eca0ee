"""Policy losses, one value per response or token."""

import torch

from assay.losses.masked import masked_sum
from assay.shapes import RowFloat, TokenBool, TokenFloat


def negative_log_likelihood(logprobs: TokenFloat) -> TokenFloat:
    """-log pi(token), in nats.

    Source: maximum likelihood; Ouyang et al. 2022, arXiv:2203.02155, sec. 3.5 (supervised fine-tuning).
    """
    return -logprobs


def reinforce(logprobs: TokenFloat, advantages: TokenFloat, mask: TokenBool) -> RowFloat:
    """-sum over counted tokens of A_t log pi(token t): its gradient is the policy gradient with the sign of a loss.

    Source: Williams 1992, "Simple statistical gradient-following algorithms", sec. 4.
    """
    return -masked_sum(logprobs * advantages.detach(), mask)


def log_ratio(logprobs: TokenFloat, ref_logprobs: TokenFloat, mask: TokenBool) -> RowFloat:
    """log pi(response) - log pi_ref(response), summed over counted tokens, in nats.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 5 (the implicit reward over beta).
    """
    return masked_sum(logprobs - torch.where(mask, ref_logprobs, 0.0), mask)
