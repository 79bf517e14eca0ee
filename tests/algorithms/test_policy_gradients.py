"""Each method's expected update, over everything that can be sampled, is the exact gradient it claims to estimate."""

import pytest
import torch

from assay.algorithms.a2c import A2C
from assay.algorithms.grpo import GRPO
from assay.algorithms.nash_md import NashMD
from assay.algorithms.p3o import P3O
from assay.algorithms.ppo import PPO
from assay.algorithms.reinforce import REINFORCE
from assay.algorithms.remax import ReMax
from assay.algorithms.rloo import RLOO
from assay.engine.learner import Learner
from assay.engine.weights import item_weights
from assay.lab.rollouts import every_group
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from lab.training import paired

BETA = 0.3


@pytest.fixture
def model():
    """A policy that has moved away from the reference."""
    world = World.random(contexts=2, vocabulary=3, horizon=2, seed=4)
    model = TabularModel(world, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.logits += 0.7 * torch.randn(model.logits.shape, generator=generator, dtype=torch.float64)
        model.state_values += torch.randn(model.state_values.shape, generator=generator, dtype=torch.float64)
    return model


def exact(model, beta, rewards=None):
    """d/d logits of E R - beta KL(pi || pi_ref), by enumeration."""
    world = model.world
    rewards = world.oracle if rewards is None else rewards
    logprobs = world.sequence_logprobs(model.logits.log_softmax(-1))
    probabilities = logprobs.exp()
    gained = rewards - beta * (logprobs - world.sequence_logprobs(world.reference))
    (gradient,) = torch.autograd.grad(world.contexts @ (probabilities * gained).sum(-1), model.logits)
    return gradient


def prepared(model, algorithm, batch, memory=None):
    reference = Learner(TabularModel(model.world, dtype=torch.float64))
    learners = {"policy": Learner(model), "value": Learner(model), "reference": reference}
    return algorithm.prepare(batch, learners, {} if memory is None else memory)


def update(model, algorithm, batch):
    """-d/d logits of the method's policy loss over the whole batch, by the weights that the learner uses."""
    term = algorithm.losses()[0]
    values, _ = term.fn(model(batch, term.reads), batch)
    weights = item_weights(batch, term.reduction).double()
    (gradient,) = torch.autograd.grad((weights * values).sum(), model.logits)
    return -gradient


SINGLE = [REINFORCE(kl_coef=BETA, baseline="none"), REINFORCE(kl_coef=BETA), ReMax(kl_coef=BETA)]


@pytest.mark.parametrize("algorithm", SINGLE, ids=["none", "moving", "ReMax"])
def test_reinforce_and_its_baselines(model, algorithm):
    batch, memory = every_group(model, 1, model.world.oracle, draws=algorithm.draws), {}
    prepared(model, algorithm, batch.fill(rewards=batch.rewards + 3), memory)  # a moving baseline has seen something
    found = update(model, algorithm, prepared(model, algorithm, batch, memory))
    assert torch.allclose(found, exact(model, BETA), atol=1e-6)


@pytest.mark.parametrize("clipping", ["separate", "joint"])
def test_pairwise_policy_gradient(model, clipping):
    algorithm = P3O(kl_coef=BETA, clipping=clipping, num_epochs=1)
    batch = every_group(model, 2, model.world.oracle)
    found = update(model, algorithm, paired(prepared(model, algorithm, batch)))
    assert torch.allclose(found, exact(model, BETA), atol=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_the_gradient_and_the_groups_mean_a_share_of_it(size):
    world = World.random(contexts=2, vocabulary=2, horizon=2, seed=4)
    model = TabularModel(world, dtype=torch.float64)
    batch = every_group(model, size, world.oracle)
    wanted = exact(model, BETA)
    assert torch.allclose(
        update(model, RLOO(kl_coef=BETA), prepared(model, RLOO(kl_coef=BETA), batch)), wanted, atol=1e-6
    )
    mean = GRPO(kl_coef=BETA, kl_in="reward", scale="none", average="sum")
    found = update(model, mean, prepared(model, mean, batch))
    assert torch.allclose(found, (size - 1) / size * wanted, atol=1e-6)


@pytest.mark.parametrize("lam", [1.0, 0.6])
def test_actor_critic(model, lam):
    """Any values are an unbiased baseline with lambda 1; with less the values must be those of the policy."""
    world, algorithm = model.world, A2C(kl_coef=BETA, lam=lam, whiten_advantages=False)
    if lam < 1:
        policy, chances = model.policy, model.probabilities
        gap = world.sequence_logprobs(policy) - world.sequence_logprobs(world.reference)
        later = policy - world.reference  # what is still to be paid for the second token's KL
        gained = (world.oracle - BETA * gap).reshape(2, 3, 3)
        first = (gained + BETA * later[:, 0, :, None]).reshape(2, 3, 3)  # the first token's KL is paid already
        joint = chances.reshape(2, 3, 3)
        with torch.no_grad():
            model.state_values[:, 0] = (joint * gained).sum((1, 2))
            model.state_values[:, 1:] = (joint / joint.sum(-1, keepdim=True) * first).sum(-1)
    batch = prepared(model, algorithm, every_group(model, 1, world.oracle))
    found = update(model, algorithm, batch) * world.horizon  # a mean over tokens, two of them in each response
    assert torch.allclose(found, exact(model, BETA), atol=1e-6)
    same = PPO(kl_coef=BETA, lam=lam, whiten_advantages=False)  # ratio 1: the first step of PPO is actor-critic's
    assert torch.allclose(update(model, same, prepared(model, same, batch)) * world.horizon, found, atol=1e-9)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_kl_in_the_loss(model, estimator):
    """At the states that the policy visits k2 has the gradient of KL(pi || ref), k3 that of KL(ref || pi).

    Which states a token leads to is not charged to it: that takes a KL in the reward.
    """
    world = model.world
    algorithm = REINFORCE(kl_coef=BETA, kl_in="loss", kl_estimator=estimator, baseline="none")
    found = update(model, algorithm, prepared(model, algorithm, every_group(model, 1, 0 * world.oracle)))
    ours, theirs = model.logits.log_softmax(-1), world.reference
    visits = torch.cat([torch.ones(2, 1, dtype=torch.float64), model.policy[:, 0].exp()], 1)
    divergence = ours.exp() * (ours - theirs) if estimator == "k2" else theirs.exp() * -ours
    (gradient,) = torch.autograd.grad(world.contexts @ (visits[..., None] * divergence).sum((1, 2)), model.logits)
    assert torch.allclose(found, -BETA * gradient, atol=1e-6)
    whole = torch.allclose(found, exact(model, BETA, 0 * world.oracle), atol=1e-6)
    assert not whole  # the gradient of the KL of whole responses is another one, in both cases


def test_a_shift_of_rewards_by_context_changes_no_comparing_method(model):
    """RLOO, GRPO and P3O see differences within a prompt; the sample gradient of plain REINFORCE moves."""
    shift = torch.tensor([[5.0], [-3.0]], dtype=torch.float64)
    for algorithm in (RLOO(), GRPO(), P3O()):
        one, other = (every_group(model, 2, model.world.oracle + s).fill(weight=torch.ones(324)) for s in (0, shift))
        found = [update(model, algorithm, prepared(model, algorithm, batch)) for batch in (one, other)]
        assert torch.allclose(*found, atol=1e-9), algorithm.name
    plain = REINFORCE(baseline="none")
    few = torch.tensor([0, 1])
    one, other = (every_group(model, 1, model.world.oracle + s).select(few) for s in (0, shift))
    found = [update(model, plain, prepared(model, plain, batch)) for batch in (one, other)]
    assert not torch.allclose(*found, atol=0.1)


def test_nash_md_raises_what_beats_the_mixture(model):
    """d/d pi of E P(y beats y') - beta KL(pi || ref), y' from the mixture, held fixed."""
    world, algorithm = model.world, NashMD(kl_coef=BETA, mixture=0.4)
    batch = every_group(model, 1, world.oracle, draws=("mixture",), mixture=0.4)
    found = update(model, algorithm, prepared(model, algorithm, batch))
    mixed = world.sequence_logprobs((0.6 * model.policy + 0.4 * world.reference).log_softmax(-1)).exp()
    wins = (torch.sigmoid(world.oracle[:, :, None] - world.oracle[:, None]) * mixed[:, None]).sum(-1)
    assert torch.allclose(found, exact(model, BETA, wins), atol=1e-6)
