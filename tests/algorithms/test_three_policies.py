"""Where sampler, policy before the update and reference are three: which of them each number is of."""

import pytest
import torch

from algorithms.by_hand import answers, gradient, ready, t
from assay.algorithms.grpo import GRPO
from assay.algorithms.rloo import RLOO
from assay.algorithms.sppo import SPPO

OLD, REF = t([[-1.2], [-1.0]]), t([[-1.5], [-1.1]])  # the sampler's are -1


def test_the_kl_off_the_reward_is_the_policys_not_the_samplers():
    """KL 0.3 and 0.1: rewards 2 and 0 become 1.7 and -0.1. By the sampler's numbers they would be 1.5 and -0.1."""
    algorithm = RLOO(kl_coef=1.0, num_epochs=2)
    batch = ready(algorithm, answers([2.0, 0.0], width=1), old=OLD, ref=REF)
    assert batch.advantages[:, 0].tolist() == pytest.approx([1.8, -1.8])


def test_the_correction_for_the_sampler_weighs_the_methods_loss_and_not_the_kls():
    """Where the rewards are equal, the pull alone: 0.5 (-1.1 + 1.5) and 0.5 (-1 + 1.1), whatever the sampler said.

    Where they are 2 and 0: -exp(0.1) exp(-0.2) = -0.904837 and 1 beside it. A weighed pull would be 0.163746.
    """
    common = {"num_epochs": 2, "scale": "none", "kl_in": "loss", "kl_estimator": "k2", "sampler_clip": 2.0}
    algorithm, now = GRPO(kl_coef=0.5, **common), t([[-1.1], [-1.0]])
    equal = ready(algorithm, answers([1.0, 1.0], width=1), old=OLD, ref=REF)
    assert gradient(algorithm, equal, now)[:, 0].tolist() == pytest.approx([0.2, 0.05])
    batch = ready(algorithm, answers([2.0, 0.0], width=1), old=OLD, ref=REF)
    assert gradient(algorithm, batch, now)[:, 0].tolist() == pytest.approx([-0.704837, 1.05], abs=1e-5)


def test_sppo_moves_from_the_policy_it_was_and_not_from_the_reference():
    """Wins 0.880797 and 0.119203 ask for log-ratios of 0.761594 and -0.761594; they are 0.3 and -0.3."""
    algorithm, now = SPPO(beta=0.5), t([[-0.9], [-1.3]])
    apart = ready(algorithm, answers([2.0, 0.0], width=1), old=OLD, ref=REF)
    found = gradient(algorithm, apart, now)
    alone = ready(algorithm, answers([2.0, 0.0], width=1), old=OLD, ref=OLD)
    assert torch.equal(found, gradient(algorithm, alone, now))
    assert found[:, 0].tolist() == pytest.approx([-0.923188, 0.923188], abs=1e-5)
