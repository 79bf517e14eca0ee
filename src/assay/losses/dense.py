"""Losses of feedback that speaks of places within a response."""

from torch.nn import functional as F

from assay.shapes import TokenFloat, TokenLevels


def token_binary(logits: TokenFloat, labels: TokenFloat) -> TokenFloat:
    """-[y log p + (1 - y) log(1 - p)] at each token, p = sigmoid(logit): right or wrong so far.

    Source: Lightman et al. 2023, arXiv:2305.20050, sec. 2 (at step ends); Cobbe et al. 2021, arXiv:2110.14168, sec. 4.2
    (an outcome, at every token).
    """
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def token_kinds(logits: TokenLevels, present: TokenLevels) -> TokenFloat:
    """Sum over kinds of the binary cross-entropy of whether a token lies in a span of that kind.

    Source: Wu et al. 2023, arXiv:2306.01693, sec. 3.1 (a dense reward for each type of error).
    """
    return F.binary_cross_entropy_with_logits(logits, present, reduction="none").sum(-1)
