"""The head's posterior: by hand in one dimension, against a grid in two, and as plain statistics say."""

import math

import pytest
import torch

from assay.engine.catalog import resolve_model
from assay.engine.learner import OneAdapter
from assay.engine.load import LoRASettings, adapter_names, load_reward
from assay.rewards.laplace import features, laplace
from assay.rewards.model import RewardModel
from assay.rewards.pooling import Pooling
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.tokens.chat import Encoder
from tiny import CONVERSATIONS, tiny_model, tiny_reward, tokenizer


def outcomes(wins, num):
    """The difference 1 for a win, -1 for a loss: [num, 1]."""
    return torch.tensor([1.0] * wins + [-1.0] * (num - wins))[:, None]


def test_one_dimension_by_hand():
    """7 of 10, precision 2: w solves 10 s(w) + 2 w = 7, and 1 / variance = 2 + 10 s (1 - s)."""
    found = laplace(outcomes(7, 10), precision=2.0)
    w = found.weights.item()
    share = 1 / (1 + math.exp(-w))
    assert 10 * share + 2 * w == pytest.approx(7, abs=1e-8)
    variance = 1 / (2 + 10 * share * (1 - share))
    assert found.covariance.item() == pytest.approx(variance, abs=1e-12)
    x = torch.tensor([[3.0]])
    assert found.mean(x).item() == pytest.approx(3 * w) and found.variance(x).item() == pytest.approx(9 * variance)
    moderated = 3 * w / math.sqrt(1 + math.pi * 9 * variance / 8)
    assert found.probability(x).item() == pytest.approx(1 / (1 + math.exp(-moderated)))


def test_almost_no_prior_is_maximum_likelihood_whose_variance_falls_as_1_over_n():
    """Var = 1 / (n s (1 - s)), the figure that repeated fits in the lab's worlds scatter by."""
    for n in (100, 400):
        found = laplace(outcomes(int(0.7 * n), n), precision=1e-9)
        assert found.weights.item() == pytest.approx(math.log(0.7 / 0.3), abs=1e-6)
        assert found.covariance.item() == pytest.approx(1 / (n * 0.7 * 0.3), rel=1e-6)


def data(num=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64) @ torch.tensor([[1.0, 0.4], [0.0, 0.7]]).double()
    right = torch.rand(num, generator=generator) < torch.sigmoid(x @ torch.tensor([1.0, -0.5]).double())
    return torch.where(right[:, None], x, -x)


def test_two_dimensions_against_the_whole_posterior_on_a_grid():
    """80 pairs: mean within 0.05 deviations, covariance within 6%, predictive probabilities within 0.005."""
    x, precision = data(), 1.0
    found = laplace(x, precision=precision)
    scale = 8 * found.covariance.diagonal().sqrt()
    steps = torch.linspace(-1, 1, 401, dtype=torch.float64)
    grid = found.weights + torch.cartesian_prod(steps * scale[0], steps * scale[1])
    logs = torch.nn.functional.logsigmoid(grid @ x.T).sum(-1) - precision / 2 * (grid**2).sum(-1)
    share = logs.softmax(0)
    mean = share @ grid
    covariance = (grid - mean).T @ ((grid - mean) * share[:, None])
    spread = found.covariance.diagonal().sqrt()
    assert ((mean - found.weights).abs() / spread).max() < 0.05
    assert ((covariance - found.covariance).abs() / spread.outer(spread)).max() < 0.06
    asked = torch.cartesian_prod(*[torch.linspace(-3, 3, 7, dtype=torch.float64)] * 2)
    exact = torch.sigmoid(asked @ grid.T) @ share
    assert (found.probability(asked) - exact).abs().max() < 0.005
    plain = torch.sigmoid(found.mean(asked))
    assert 5 * (found.probability(asked) - exact).abs().mean() < (plain - exact).abs().mean()


def test_what_the_pairs_do_not_speak_of_keeps_the_priors_variance():
    x = torch.cat([data(), torch.zeros(80, 1, dtype=torch.float64)], -1)
    found = laplace(x, precision=0.5)
    assert found.variance(torch.tensor([[0.0, 0.0, 1.0]])).item() == pytest.approx(2.0)
    assert found.variance(torch.tensor([[1.0, 0.0, 0.0]])).item() < 0.5


def test_separable_pairs_have_a_maximum_under_a_weak_prior():
    found = laplace(torch.tensor([[1.0, 0.0], [5.0, 0.1]]), precision=1e-3)
    x = torch.tensor([[1.0, 0.0], [5.0, 0.1]]).double()
    gradient = 1e-3 * found.weights - x.T @ torch.sigmoid(-x @ found.weights)
    assert gradient.norm() < 1e-9


def test_no_prior_is_refused():
    with pytest.raises(InputError, match="precision must be more than 0"):
        laplace(torch.ones(2, 1), precision=0)


def test_features_are_what_the_head_of_a_model_reads():
    reward = RewardModel.from_pretrained(tiny_reward(), dtype="float32")
    before = reward.outputs(CONVERSATIONS)
    read = features(reward, CONVERSATIONS)
    head = reward.learner.model.network.score
    assert read.shape == (len(CONVERSATIONS), 32) and head.out_features == 1
    assert torch.allclose(read @ head.weight.detach().T, before, atol=1e-5)
    assert torch.equal(reward.outputs(CONVERSATIONS), before)
    posterior = laplace(read[0::2] - read[1::2], precision=1.0, weights=head.weight.detach()[0])
    assert torch.allclose(
        posterior.mean(read[0::2] - read[1::2]).float(), (before[0::2] - before[1::2])[:, 0], atol=1e-4
    )


def test_features_of_one_of_several_adapters_and_of_several_heads_are_its_own():
    """Each has a body and a head that are its own; a head of three numbers reads one vector all the same."""
    encoder, source = Encoder(tokenizer()), resolve_model(tiny_model())
    model = load_reward(
        source, dtype="float32", lora=LoRASettings(rank=2), fresh_head=True, num_outputs=3, num_adapters=2
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "reward_" in name:
                p.normal_(generator=torch.Generator().manual_seed(len(name) + ("1" in name)))
    seen = []
    for adapter in adapter_names(2):
        reward = RewardModel(OneAdapter(model, adapter), encoder, name=adapter, readout=Readout(kind="ensemble"))
        before, read = reward.outputs(CONVERSATIONS), features(reward, CONVERSATIONS)
        head = model.head("reward")
        assert before.shape[1] == head.out_features == 3
        assert torch.allclose(read @ head.weight.detach().T, before, atol=1e-4)
        assert torch.equal(reward.outputs(CONVERSATIONS), before)
        seen.append(read)
    assert not torch.allclose(*seen)


def test_rewards_made_of_tokens_have_no_features():
    reward = RewardModel.from_pretrained(tiny_reward(), dtype="float32")
    with pytest.raises(InputError, match="dense has numbers at tokens"):
        features(RewardModel(reward.learner, reward.encoder, name="dense", pooling=Pooling()), CONVERSATIONS)
