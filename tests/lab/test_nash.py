"""Preferences that no reward explains: Nash-MD finds the equilibrium of the game, Bradley-Terry sees nothing."""

import pytest
import torch

from assay.algorithms.nash_md import NashMD
from assay.engine.learner import Learner
from assay.engine.weights import item_weights
from assay.lab.feedback import compared
from assay.lab.fit import maximise
from assay.lab.nash import answer, mirror_step, nash_md
from assay.lab.rollouts import every_group, world_of
from assay.lab.tabular import TabularModel
from assay.rewards.likelihoods.comparisons import BradleyTerry
from lab.training import Everything, training

CYCLE = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=torch.float64)
EVEN = torch.full((3,), 1 / 3, dtype=torch.float64)
TAUS = [0.05, 0.2, 1.0]


def game(wins):
    """What is above the diagonal, and below it what the other side has."""
    upper = torch.triu(wins.double(), 1)
    return upper + torch.tril(1 - upper.T, -1) + 0.5 * torch.eye(len(wins), dtype=torch.float64)


def planted(seed, size, tau):
    """A random game, and the reference for which a policy chosen beforehand is the equilibrium: solved for it."""
    generator = torch.Generator().manual_seed(seed)
    wins = game(torch.rand(size, size, generator=generator))
    wanted = torch.rand(size, generator=generator, dtype=torch.float64) + 0.05
    wanted = wanted / wanted.sum()
    return wins, (wanted.log() - wins @ wanted / tau).softmax(0), wanted


def divergence(policy, other):
    return (policy * (policy.log() - other.log())).sum(-1)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("size", [3, 6])
def test_it_reaches_the_equilibrium_at_the_stated_pace(size, tau):
    """KL(equilibrium || policy t) <= 8 / (tau^2 (t + 1)), all the way; in the end nothing is left."""
    for seed in range(5):
        wins, reference, wanted = planted(seed, size, tau)
        assert divergence(wanted, reference) > 1e-3
        left = divergence(wanted, nash_md(wins, reference, tau, 1000))
        assert (left <= 8 / (tau**2 * torch.arange(1, 1002))).all() and left[-1] < 1e-4
        assert (left[100:] < 0.5 * left[0]).all()


@pytest.mark.parametrize("tau", TAUS)
def test_the_equilibrium_is_its_own_best_answer(tau):
    wins, reference = game(torch.rand(5, 5)), torch.rand(5, dtype=torch.float64).softmax(0)
    found = nash_md(wins, reference, tau, 4000)[-1]
    assert (answer(found, wins, reference, tau) - found).abs().max() < 2e-3
    assert (answer(reference, wins, reference, tau) - reference).abs().max() > 0.01


@pytest.mark.parametrize("tau", TAUS)
def test_against_the_equilibrium_nobody_does_better_than_even(tau):
    """P(pi beats it) - tau KL(pi || mu) + tau KL(it || mu) <= 1/2; the best that can be had is tau log Z."""
    wins, reference, wanted = planted(1, 4, tau)
    level = tau * divergence(wanted, reference)
    best = world_of(reference, wins @ wanted).log_normaliser(tau).item() * tau
    assert best + level.item() == pytest.approx(0.5, abs=1e-12)
    others = (3 * torch.randn(200, 4, dtype=torch.float64)).softmax(-1)
    assert (others @ wins @ wanted - tau * divergence(others, reference) + level < 0.5).all()
    assert world_of(reference, wins @ reference).log_normaliser(tau).item() * tau > 0.502  # the reference can be beaten


@pytest.mark.parametrize("tau", TAUS)
def test_rock_paper_scissors_ends_even(tau):
    """From wherever it starts, with an even reference."""
    policy = torch.tensor([0.98, 0.015, 0.005], dtype=torch.float64)
    for t in range(1, 2000):  # the first step of the schedule would go to the reference by itself
        policy = mirror_step(policy, CYCLE, EVEN, tau, 2 / (tau * (t + 2)))
    assert (policy - EVEN).abs().max() < 2e-3


def test_unequal_stakes_have_an_uneven_equilibrium():
    """For margins a, b, c around the cycle the game's own is b, c, a over their sum; tau draws away from it evenly."""
    a, b, c = 0.4, 0.1, 0.2
    wins = torch.tensor([[0.5, 0.5 + a, 0.5 - c], [0.5 - a, 0.5, 0.5 + b], [0.5 + c, 0.5 - b, 0.5]]).double()
    wanted = torch.tensor([b, c, a], dtype=torch.float64) / (a + b + c)
    assert (wins @ wanted - 0.5).abs().max() < 1e-7  # nobody beats it and it beats nobody
    far, near = ((nash_md(wins, EVEN, tau, 8000)[-1] - wanted).abs().max() for tau in (0.02, 0.01))
    assert near < 0.025 and near < 0.6 * far


@pytest.mark.parametrize("mixture", [0.0, 0.5])
def test_the_trained_method_ends_as_the_best_answer_to_its_mixture(mixture):
    """Which is the equilibrium where nothing is mixed in; else it lies between that and the answer to the reference."""
    tau, reference = 0.2, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    world = world_of(reference, torch.tensor([3.0, 0.0, -3.0], dtype=torch.float64))
    wins = torch.sigmoid(world.oracle[0][:, None] - world.oracle[0])
    model, algorithm = TabularModel(world), NashMD(kl_coef=tau, mixture=mixture)
    batches = Everything(model, draws=algorithm.draws, mixture=mixture)
    training(model, algorithm, batches, steps=300, lr=0.05, schedule="linear").run(lambda _: None)
    found = model.probabilities[0]
    mixed = ((1 - mixture) * found.log() + mixture * reference.log()).softmax(0)
    assert torch.allclose(found, answer(mixed, wins, reference, tau), atol=2e-3)
    equilibrium = nash_md(wins, reference, tau, 2000)[-1]
    assert ((found - equilibrium).abs().max() > 0.02) == (mixture > 0)


def judged(batch, wins):
    """What a judge pays who is asked two by two: half the log-odds to the policy's answer, less half to the mixture's.

    So the difference has the probability of winning, whether or not there is a reward of each answer that explains it.
    """
    odds = torch.logit(wins[batch.ids[0::2, 0], batch.ids[1::2, 0]])
    return batch.fill(rewards=torch.stack([odds / 2, -odds / 2], 1).flatten())


def natural_step(model, algorithm, wins, eta):
    """The trained method's expected gradient, divided by the policy, and a step along it."""
    batch = every_group(model, 1, model.world.oracle, draws=algorithm.draws, mixture=algorithm.mixture)
    learners = {"policy": Learner(model), "reference": Learner(TabularModel(model.world, dtype=torch.float64))}
    batch = algorithm.prepare(judged(batch, wins), learners, {})
    term = algorithm.losses()[0]
    values, _ = term.fn(model(batch, term.reads), batch)
    (found,) = torch.autograd.grad((item_weights(batch, term.reduction) * values).sum(), model.logits)
    with torch.no_grad():
        model.logits -= eta * found / model.policy.exp()


def beginner(reference, policy):
    model = TabularModel(world_of(reference, torch.zeros(3).double()), dtype=torch.float64)
    with torch.no_grad():
        model.logits.copy_(policy.log())
    return model


LEANING = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
FAR = torch.tensor([0.05, 0.15, 0.8], dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.05, 0.5])
@pytest.mark.parametrize("reference", [EVEN, LEANING], ids=["even", "leaning"])
def test_a_step_of_the_trained_method_is_the_mirror_step_in_a_cycle_too(reference, eta):
    """With eta tau of the reference in the mixture: m exp(eta P(. beats m)), to rounding of the weights."""
    tau = 0.4
    model = beginner(reference, FAR)
    natural_step(model, NashMD(kl_coef=tau, mixture=eta * tau), CYCLE, eta)
    assert torch.allclose(model.probabilities[0], mirror_step(FAR, CYCLE, reference, tau, eta), atol=1e-6)
    assert (model.probabilities[0] - FAR).abs().max() > 0.003


@pytest.mark.parametrize("mixture", [0.0, 0.25])
def test_in_rock_paper_scissors_the_trained_method_ends_even_and_stays(mixture):
    """mu is even, so mu exp(P(. beats even) / tau) is. The policy itself gets there, not a mean over its way: without
    the KL it goes round and round."""
    last = {}
    for tau in (0.2, 0.0):
        model, path = beginner(EVEN, FAR), []
        for _ in range(100):
            natural_step(model, NashMD(kl_coef=tau, mixture=mixture), CYCLE, 0.5)
            path.append(model.probabilities[0])
        last[tau] = (torch.stack(path[-20:]) - EVEN).abs().amax(1)
    assert last[0.2].max() < 2e-3 and last[0.2][-1] < 2e-4
    assert last[0.0].min() > 0.3


def test_in_a_cycle_the_trained_method_leans_against_what_the_reference_says_most():
    """Where nothing is mixed in it ends at the game's equilibrium, which is its own best answer."""
    tau, model = 0.2, beginner(LEANING, FAR)
    for _ in range(100):
        natural_step(model, NashMD(kl_coef=tau, mixture=0.0), CYCLE, 0.5)
    found = model.probabilities[0]
    assert torch.allclose(found, nash_md(CYCLE, LEANING, tau, 4000)[-1], atol=2e-3)
    assert torch.allclose(found, answer(found, CYCLE, LEANING, tau), atol=2e-3)
    assert (found - LEANING).abs().max() > 0.1


def rewards_of(wins, seed=0):
    """Bradley-Terry fitted to every pair, evenly often, from rewards that start anywhere; their mean taken off."""
    first, second = torch.triu_indices(len(wins), len(wins), 1)
    world = world_of(torch.full((len(wins),), 1 / len(wins), dtype=torch.float64), torch.zeros(len(wins)).double())
    model = TabularModel(world, dtype=torch.float64)
    with torch.no_grad():
        model.reward_weights.copy_(torch.randn(1, len(wins), generator=torch.Generator().manual_seed(seed)))
    batch = compared(world, torch.zeros_like(first), first, second, preference=wins[first, second])
    maximise(model, BradleyTerry(centring_coef=0.0), batch)
    rewards = model.rewards.detach()[0]
    return rewards - rewards.mean()


def test_bradley_terry_gives_a_cycle_equal_rewards():
    """So its tilt is the reference, whatever that is; the equilibrium leans against what the reference says most."""
    assert rewards_of(CYCLE).abs().max() < 1e-6
    reference = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    tilted = world_of(reference, rewards_of(CYCLE)).optimum(0.1)[0]
    assert torch.allclose(tilted, reference, atol=1e-5)
    found = nash_md(CYCLE, reference, 0.1, 2000)[-1]
    assert found @ CYCLE @ tilted > 0.5 + 0.1 * divergence(found, reference) and found[2] > 0.3


def test_bradley_terry_recovers_what_is_no_cycle():
    """The same fit, of preferences that rewards do explain."""
    truth = torch.tensor([1.0, 0.2, -0.4, -0.8], dtype=torch.float64)
    assert torch.allclose(rewards_of(torch.sigmoid(truth[:, None] - truth)), truth, atol=1e-5)
