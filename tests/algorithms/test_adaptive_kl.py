"""A KL that is aimed at: the coefficient finds it, from too low and from too high."""

import math

import pytest
import torch

from assay.algorithms.rloo import RLOO
from assay.lab.rollouts import TabularRollouts
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from lab.training import training

STEPS, LAST = 400, 80


def aimed(target, start, seed):
    """KL of the policy after each step, and the coefficient of each, in a world of two prompts."""
    torch.manual_seed(seed)
    world = World.random(contexts=2, vocabulary=3, horizon=2, seed=seed)
    model, kls, coefs = TabularModel(world), [], []
    algorithm = RLOO(kl_coef=start, target_kl=target, kl_horizon=1000.0)
    rollouts = TabularRollouts(model, num_prompts=32, num_answers=4, seed=seed)

    def look(metrics):
        kls.append(float(world.kl(model.probabilities)))
        coefs.append(metrics["kl_coef"])

    training(model, algorithm, rollouts, steps=STEPS, lr=0.05).run(look)
    return world, kls, coefs


def price_of(world, target):
    """The beta whose tilt has this KL."""
    low, high = math.log(1e-3), math.log(1e3)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if world.kl(world.optimum(math.exp(middle))) > target else (low, middle)
    return math.exp(low)


def test_answers_that_are_masked_have_no_kl():
    """Half of them gone: the coefficient moves as it does for the other half alone, by their KL and their number."""
    world = World.random(contexts=2, vocabulary=3, horizon=2, seed=0)
    model = TabularModel(world)
    batch = TabularRollouts(model, num_prompts=4, num_answers=2, seed=0).next()["main"]
    batch = batch.fill(ref_logprobs=batch.sampler_logprobs - 0.5)
    algorithm = RLOO(kl_coef=1.0, target_kl=0.1, kl_horizon=50.0)
    mask = batch.mask.clone()
    mask[::2] = False
    halves = [batch.fill(mask=mask), batch.select(torch.arange(1, batch.num_rows, 2)), batch.fill(mask=mask & False)]
    after = []
    for half in halves:
        memory = {}
        algorithm.coefficient(half, memory)
        after.append(float(memory["kl_coef"]) if memory else None)
    assert after[0] == after[1] > 1.0 and after[2] is None


@pytest.mark.parametrize("start", [0.2, 4.0])
@pytest.mark.parametrize("target", [0.2, 0.8])
def test_the_kl_ends_near_its_target(target, start):
    """The mean of the last fifth is within 20 %, and the coefficient where the optimum has that KL."""
    world, kls, coefs = aimed(target, start, seed=0)
    assert sum(kls[-LAST:]) / LAST == pytest.approx(target, rel=0.2)
    price = price_of(world, target)
    assert not price / 1.5 < coefs[0] < price * 1.5  # it did not start there
    assert sum(coefs[-LAST:]) / LAST == pytest.approx(price, rel=0.2)
