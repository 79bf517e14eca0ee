"""Losses on pairs, one value per pair."""

import torch
import torch.nn.functional as F

from assay.shapes import PairFloat


def bradley_terry(
    chosen: PairFloat,
    rejected: PairFloat,
    *,
    preference: PairFloat | None = None,
    margin: PairFloat | None = None,
    label_smoothing: float = 0.0,
) -> PairFloat:
    """-[q log sigmoid(d) + (1 - q) log sigmoid(-d)], d = chosen - rejected - margin, the rewards of two responses.

    `preference` is the probability that the first is preferred (1 if absent); smoothing moves it towards 1/2:
    q = (1 - s) preference + s (1 - preference). The margin is taken off in the direction of the preferred response.

    Source: Bradley & Terry 1952; Stiennon et al. 2020, arXiv:2009.01325, sec. 3.4; margin: Touvron et al. 2023,
    arXiv:2307.09288, eq. 2; smoothing: Mitchell 2023, "A note on DPO with noisy preferences", eq. 1.
    """
    difference = chosen - rejected
    if preference is None:
        preference = torch.ones_like(difference)
    if margin is not None:
        difference = difference - margin * torch.sign(preference - 0.5)
    first = (1 - label_smoothing) * preference + label_smoothing * (1 - preference)
    return -(first * F.logsigmoid(difference) + (1 - first) * F.logsigmoid(-difference))


def centring(chosen: PairFloat, rejected: PairFloat) -> PairFloat:
    """(chosen + rejected)^2: pulls a pair's mean reward, which comparisons leave open, to 0.

    Source: Eisenstein et al. 2023, arXiv:2312.09244, sec. 2.3 (footnote on the Bradley-Terry offset).
    """
    return (chosen + rejected) ** 2


def dpo(
    chosen_ratio: PairFloat,
    rejected_ratio: PairFloat,
    *,
    beta: float,
    preference: PairFloat | None = None,
    label_smoothing: float = 0.0,
) -> PairFloat:
    """Bradley-Terry on the implicit rewards beta log pi/pi_ref, each log ratio summed over a whole response (nats).

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """
    return bradley_terry(
        beta * chosen_ratio, beta * rejected_ratio, preference=preference, label_smoothing=label_smoothing
    )
