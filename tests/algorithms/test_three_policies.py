"""Where sampler, policy before the update and reference are three: which of them each number is of."""

import math

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
    """Where the rewards are equal, the gradient is kl_coef (log pi - log pi_ref), whatever the sampler said; where
    they are 2 and 0, that of a token is -1 times its ratio to the old policy times exp(old - sampler) beside it."""
    common = {"num_epochs": 2, "scale": "none", "kl_in": "loss", "kl_estimator": "k2", "sampler_clip": 2.0}
    algorithm, now = GRPO(kl_coef=0.5, **common), t([[-1.1], [-1.0]])
    pull = [0.5 * 0.4, 0.5 * 0.1]
    equal = ready(algorithm, answers([1.0, 1.0], width=1), old=OLD, ref=REF)
    assert gradient(algorithm, equal, now)[:, 0].tolist() == pytest.approx(pull)
    batch = ready(algorithm, answers([2.0, 0.0], width=1), old=OLD, ref=REF)
    push = [-math.exp(-1.1 + 1.2) * math.exp(-1.2 + 1.0), 1.0]
    expected = [one + other for one, other in zip(push, pull, strict=True)]
    assert gradient(algorithm, batch, now)[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_sppo_moves_from_the_policy_it_was_and_not_from_the_reference():
    algorithm, now = SPPO(beta=0.5), t([[-0.9], [-1.3]])
    apart = ready(algorithm, answers([2.0, 0.0], width=1), old=OLD, ref=REF)
    found = gradient(algorithm, apart, now)
    alone = ready(algorithm, answers([2.0, 0.0], width=1), old=OLD, ref=OLD)
    assert torch.equal(found, gradient(algorithm, alone, now))
    wins = torch.sigmoid(torch.tensor([2.0, -2.0]))
    wanted = (wins - 0.5) / 0.5
    moved = (now - OLD)[:, 0]
    assert found[:, 0].tolist() == pytest.approx((2 * (moved - wanted)).tolist(), rel=1e-5)
