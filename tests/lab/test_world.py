"""Enumerated worlds: probabilities, values, optima."""

import pytest
import torch

from assay.engine.learner import Learner
from assay.lab.tabular import TabularModel, batch_of
from assay.lab.world import World, num_states, number_of, states_before, tokens_of


@pytest.fixture
def world():
    return World.random(contexts=2, vocabulary=3, horizon=3, seed=1)


def test_probabilities_of_all_responses_sum_to_one(world):
    assert world.reference_probs.shape == (2, 27)
    assert torch.allclose(world.reference_probs.sum(-1), torch.ones(2, dtype=torch.float64))


def test_states_only_append():
    """Each state's number says its prefix; the next state's prefix is that one and the token."""
    tokens = tokens_of(torch.arange(27), 3, 3)
    states = states_before(tokens, 3)
    assert num_states(3, 3) == 13 and states.max() == 12
    assert (states[:, 0] == 0).all() and (states[:, 1] == 1 + tokens[:, 0]).all()
    assert (states[:, 2] == 4 + 3 * tokens[:, 0] + tokens[:, 1]).all()
    assert (number_of(tokens, 3) == torch.arange(27)).all()


def test_a_distribution_over_responses_has_token_probabilities(world):
    wanted = world.optimum(0.7)
    assert torch.allclose(world.sequence_logprobs(world.token_policy(wanted)).exp(), wanted)


def test_the_optimum_solves_the_regularised_problem(world):
    """E R - beta KL = beta log Z - beta KL(pi || pi*), for any pi: so pi* is the best."""
    beta = 0.6
    pi = torch.rand(2, 27, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pi = pi / pi.sum(-1, keepdim=True)
    left = world.value(pi) - beta * world.kl(pi)
    right = beta * world.contexts @ world.log_normaliser(beta) - beta * world.kl(pi, world.optimum(beta))
    assert left.item() == pytest.approx(right.item(), abs=1e-12)


def test_samples_come_as_the_distribution_says(world):
    context, response = world.sample(world.reference_probs, 20000, torch.Generator().manual_seed(0))
    share = torch.bincount(context * 27 + response, minlength=54).double() / 20000
    expected = (world.contexts[:, None] * world.reference_probs).flatten()
    error = (share - expected).abs() / (expected * (1 - expected) / 20000).sqrt()
    assert error.max() < 4.5


def test_the_learner_reads_tables_as_it_reads_language_models(world):
    learner = Learner(TabularModel(world))
    contexts, responses = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 5, 3, 26])
    out = learner.forward(batch_of(world, contexts, responses), ("logprobs", "values", "rewards", "entropy"))
    expected = world.sequence_logprobs(world.reference)[contexts, responses].float()
    assert torch.allclose(out.logprobs.sum(-1), expected, atol=1e-5)
    assert out.values.shape == (4, 3) and (out.rewards == 0).all()


def test_linear_rewards(world):
    features = torch.randn(2, 27, 4, generator=torch.Generator().manual_seed(0))
    model = TabularModel(world, features=features)
    with torch.no_grad():
        model.reward_weights.copy_(torch.tensor([1.0, 0.0, -2.0, 0.5]))
    found = model(batch_of(world, torch.tensor([1]), [7]), ("rewards",)).rewards
    assert torch.allclose(found, features[1, 7] @ model.reward_weights)
