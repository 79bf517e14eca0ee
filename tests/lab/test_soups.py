"""Rewarded soups: when the average of policies is the policy of the averaged reward, and when it is not.

Source: Rame et al. 2023, arXiv:2306.04488.
"""

import pytest
import torch

from assay.lab.world import World

BETA = 0.5
SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def rewards(world, num=3):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(num, *world.oracle.shape, generator=generator, dtype=torch.float64)


def of_sequences(world, told):
    """[C, O] the tilts' logits over whole responses, averaged with shares."""
    logits = torch.stack([world.optimum(BETA, reward).log() for reward in told])
    return (SHARES[:, None, None] * logits).sum(0).softmax(-1)


def of_tokens(world, told):
    """[C, S, V] the tilts' next-token logits, averaged with shares."""
    logits = torch.stack([world.token_policy(world.optimum(BETA, reward)) for reward in told])
    return (SHARES[:, None, None, None] * logits).sum(0).log_softmax(-1)


def asked_for(world, told):
    """[C, O] the tilt by the averaged reward."""
    return world.optimum(BETA, (SHARES[:, None, None] * told).sum(0))


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_soup_of_sequence_logits_is_the_tilt_by_the_averaged_reward(horizon):
    """pi_i ~ pi_ref exp(R_i / beta): prod pi_i^lambda_i ~ pi_ref exp(sum lambda_i R_i / beta) if lambda sums to 1."""
    world = World.random(vocabulary=4, horizon=horizon)
    told = rewards(world)
    assert (of_sequences(world, told) - asked_for(world, told)).abs().max() < 1e-12


def test_shares_that_do_not_sum_to_1_are_another_policy():
    """The reference would count more or less than once."""
    world = World.random(vocabulary=4, horizon=1)
    told = rewards(world)
    logits = torch.stack([world.optimum(BETA, reward).log() for reward in told])
    doubled = (2 * SHARES[:, None, None] * logits).sum(0).softmax(-1)
    assert (doubled - world.optimum(BETA, 2 * (SHARES[:, None, None] * told).sum(0))).abs().max() > 0.01


def test_with_one_token_the_soup_of_a_models_own_logits_is_exact():
    world = World.random(vocabulary=4, horizon=1)
    told = rewards(world)
    soup = world.sequence_logprobs(of_tokens(world, told)).exp()
    assert (soup - asked_for(world, told)).abs().max() < 1e-12


def test_with_several_tokens_the_soup_of_token_logits_is_another_policy():
    """A token's logit holds a log-sum over what may follow, which is not linear in the reward; the last has none."""
    world = World.random(vocabulary=3, horizon=3)
    told = rewards(world)
    soup, wanted = of_tokens(world, told), world.token_policy(asked_for(world, told))
    last = world.vocabulary + 1  # states before: of 0 and 1 tokens
    assert (soup[:, last:] - wanted[:, last:]).abs().max() < 1e-12
    assert (soup[:, 0] - wanted[:, 0]).abs().max() > 0.1
    found = world.sequence_logprobs(soup).exp()
    assert (found - asked_for(world, told)).abs().max() > 0.02
    mixed = (SHARES[:, None, None] * told).sum(0)

    def aim(policy):
        return (world.value(policy, mixed) - BETA * world.kl(policy)).item()

    best = aim(asked_for(world, told))
    assert aim(found) < best - 0.01  # worse at what was asked for, by its own measure
    each = [aim(world.optimum(BETA, reward)) for reward in told]
    assert aim(found) > max(each)  # yet here better than every policy it was made of
