"""Online DPO gets stuck where its reference never goes; XPO's bonus takes it there."""

import pytest
import torch

from assay.algorithms.online_dpo import OnlineDPO
from assay.algorithms.xpo import XPO
from assay.lab.exploration import combination_lock, explore, two_arms
from assay.lab.rollouts import TabularRollouts
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from lab.training import training

BETA = 0.02
STEPS = 259  # exp(1 / (8 beta)) / 2


def stuck(regrets):
    """Share of seeds that never found a policy within 1/8 of the best."""
    return float((regrets.amin(0) > 1 / 8).double().mean())


@pytest.fixture(scope="module")
def passive():
    return explore(two_arms(BETA), XPO(beta=BETA, alpha=(0.0,)), steps=STEPS, seeds=20)


def test_online_dpo_is_stuck_in_most_seeds(passive):
    assert stuck(passive[0]) >= 0.5


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 1e-1])
def test_xpo_is_not(alpha):
    regrets, furthest = explore(two_arms(BETA), XPO(beta=BETA, alpha=(alpha,)), steps=STEPS, seeds=20)
    assert stuck(regrets) <= 0.05
    assert furthest <= 1 / BETA + 1e-9


@pytest.mark.parametrize(("alpha", "is_stuck"), [(0.0, True), (1e-2, False)])
def test_so_it_is_in_the_loop_that_trains_language_models(alpha, is_stuck):
    """Its replay, its drawn labels and the bound of `v_max`, one comparison a batch; one seed."""
    torch.manual_seed(0)
    world = two_arms(BETA)
    model, regrets = TabularModel(world), []
    algorithm = XPO(beta=BETA, alpha=(alpha,), v_max=1.0, num_epochs=4)
    rollouts = TabularRollouts(model, num_prompts=1, num_answers=1, draws=algorithm.draws, seed=0)

    def look(_):
        worth = world.value(model.probabilities) - BETA * world.kl(model.probabilities)
        regrets.append(float(BETA * world.log_normaliser(BETA)[0] - worth))

    training(model, algorithm, rollouts, steps=4 * STEPS, lr=0.5).run(look)
    assert (min(regrets) > 1 / 8) == is_stuck


@pytest.mark.parametrize(("v_max", "least", "most"), [(0.1, 0.9, 1.25), (0.0, 2.0, torch.inf)])
def test_the_loop_that_trains_language_models_keeps_to_the_bound(v_max, least, most):
    """A bound of 1 nat on five answers whose rewards ask for more, but for what steps of 0.05 overshoot."""
    torch.manual_seed(1)
    reference, rewards = torch.log_softmax(torch.randn(5).double(), 0), 3 * torch.randn(5).double()
    world = World(5, 1, torch.ones(1, dtype=torch.float64), reference[None, None], rewards[None])
    model, furthest = TabularModel(world), []
    algorithm = XPO(beta=0.1, alpha=(0.1,), v_max=v_max, num_epochs=2)
    rollouts = TabularRollouts(model, num_prompts=16, num_answers=1, draws=algorithm.draws, seed=0)

    def look(_):
        furthest.append(float((model.probabilities.flatten().log() - reference).abs().max()))

    training(model, algorithm, rollouts, steps=200, lr=0.05).run(look)
    assert least < max(furthest) < most


def test_on_its_own_answers_alone_online_dpo_is_stuck_too():
    regrets, _ = explore(two_arms(BETA), OnlineDPO(beta=BETA), steps=STEPS, seeds=20)
    assert stuck(regrets) >= 0.5


def test_a_combination_lock_opens_in_half_the_questions():
    world, beta, steps = combination_lock(4, 0.1, 4.0), 0.2, 100
    medians = []
    for algorithm in (XPO(beta=beta, alpha=(0.0,)), XPO(beta=beta, alpha=(0.01,))):
        regrets, _ = explore(world, algorithm, steps=steps, seeds=10, v_max=4.0)
        near = regrets < 0.1
        first = torch.where(near.any(0), near.double().argmax(0), steps)
        medians.append(float(first.double().median()))
    assert medians[1] <= medians[0] / 2


def test_exploring_costs_where_the_reference_is_right():
    """Nothing is free: with a good reference and a large bonus the average regret is higher than without one."""
    world = two_arms(BETA)
    good = type(world)(2, 1, world.contexts, torch.tensor([[[0.05, 0.95]]]).double().log(), world.oracle)
    costs = [float(explore(good, XPO(beta=BETA, alpha=(alpha,)), steps=60, seeds=10)[0].mean()) for alpha in (0.0, 1.0)]
    assert costs[1] > costs[0] + 0.05
