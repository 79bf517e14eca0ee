"""Reward models in worlds where the truth is known: what each likelihood recovers, and what none can."""

import math

import pytest
import torch

from assay.lab.feedback import compared, pairs, rankings, ratings
from assay.lab.fit import maximise
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from assay.losses.rating import increasing
from assay.rewards.likelihoods.comparisons import BradleyTerry, Davidson, RaoKupper
from assay.rewards.likelihoods.rankings import BestOfK, KwiseBradleyTerry, PlackettLuce
from assay.rewards.likelihoods.ratings import Ordinal, Regression

PLAIN = BradleyTerry(centring_coef=0.0)


def small(responses=4, contexts=1, seed=0, spread=1.0):
    """Responses of one token: a bandit."""
    return World.random(contexts=contexts, vocabulary=responses, horizon=1, seed=seed, spread=spread)


def fitted(world, likelihood, batch, **options):
    model = TabularModel(world, dtype=torch.float64)
    learned = maximise(model, likelihood, batch, **options)
    rewards = model.rewards.detach()
    return rewards - rewards.mean(-1, keepdim=True), learned


def centred(world):
    return world.oracle - world.oracle.mean(-1, keepdim=True)


def test_bradley_terry_recovers_the_truth_up_to_a_constant_of_each_context():
    world = small(contexts=2, responses=4)
    found, _ = fitted(world, PLAIN, pairs(world, 40000, torch.Generator().manual_seed(0)))
    assert (found - centred(world)).abs().max() < 0.08


def test_the_variance_is_the_stated_one_and_four_times_the_labels_halve_the_error():
    """One pair, n labels: Var(delta) = 1 / (n s (1 - s)), s = sigmoid(delta)."""
    world = small(responses=2, spread=0.4)
    gap = (world.oracle[0, 0] - world.oracle[0, 1]).item()
    share = 1 / (1 + math.exp(-gap))
    spread = {}
    for n in (100, 400):
        generator = torch.Generator().manual_seed(n)
        found = []
        for _ in range(300):
            wins = int((torch.rand(n, generator=generator) < share).sum())
            chosen = (torch.arange(n) >= wins).long()
            rewards, _ = fitted(world, PLAIN, compared(world, torch.zeros(n, dtype=torch.long), chosen, 1 - chosen))
            found.append((rewards[0, 0] - rewards[0, 1]).item())
        spread[n] = torch.tensor(found).std().item()
        assert spread[n] == pytest.approx(1 / math.sqrt(n * share * (1 - share)), rel=0.15)
    assert spread[100] / spread[400] == pytest.approx(2, rel=0.2)


def test_plackett_luce_and_its_relatives_recover_the_truth():
    world = small(responses=5)
    batch = rankings(world, 8000, 4, torch.Generator().manual_seed(0))
    for likelihood in (PlackettLuce(centring_coef=0), KwiseBradleyTerry(centring_coef=0), BestOfK(centring_coef=0)):
        found, _ = fitted(world, likelihood, batch)
        assert (found - centred(world)).abs().max() < 0.15, likelihood.name


@pytest.mark.parametrize("likelihood", [RaoKupper(centring_coef=0), Davidson(centring_coef=0)], ids=lambda v: v.name)
def test_the_share_of_ties_is_recovered(likelihood):
    """Labels drawn from the model itself, threshold or nu planted."""
    world, planted, n = small(responses=3), 0.7, 40000
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(3, (n,), generator=generator)
    second = (first + torch.randint(1, 3, (n,), generator=generator)) % 3
    gap = world.oracle[0, first] - world.oracle[0, second]
    if likelihood.name == "rao_kupper":
        wins, losses = torch.sigmoid(gap - planted), torch.sigmoid(-gap - planted)
    else:
        wins, losses, _ = torch.stack([gap / 2, -gap / 2, torch.full_like(gap, math.log(planted))]).softmax(0)
    draw = torch.rand(n, generator=generator, dtype=torch.float64)
    preference = torch.where(draw < wins, 1.0, torch.where(draw < wins + losses, 0.0, 0.5)).double()
    batch = compared(world, torch.zeros(n, dtype=torch.long), first, second, preference=preference)
    found, learned = fitted(world, likelihood, batch)
    (value,) = learned.values()
    assert (found - centred(world)).abs().max() < 0.06
    assert value.exp().item() == pytest.approx(planted, rel=0.05)


def test_planted_thresholds_of_a_scale_are_recovered():
    world = small(responses=5, spread=1.5)
    thresholds = torch.tensor([-1.0, 0.5, 1.2], dtype=torch.float64)
    batch = ratings(world, 40000, torch.Generator().manual_seed(0))
    noise = torch.logit(torch.rand(40000, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    levels = torch.bucketize(batch.rating + noise, thresholds) + 1
    model = TabularModel(world, dtype=torch.float64)
    learned = maximise(model, Ordinal(low=1, high=4), batch.fill(rating=levels.double()))
    shift = (model.rewards.detach() - world.oracle).mean()
    assert (increasing(learned["thresholds"]) - shift - thresholds).abs().max() < 0.06
    assert (model.rewards.detach() - shift - world.oracle).abs().max() < 0.08


def test_ratings_with_a_gaussian_prior_are_ridge_regression():
    """Squared error and a Gaussian prior have the closed solution, to machine precision."""
    world = small(responses=12)
    features = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = ratings(world, 60, torch.Generator().manual_seed(1), noise=0.3)
    model = TabularModel(world, features=features, dtype=torch.float64)
    maximise(model, Regression(), batch, prior=0.2)
    x, y = features[0, batch.ids[:, 0]], batch.rating
    closed = torch.linalg.solve(x.T @ x * 2 / 60 + 0.2 * torch.eye(5, dtype=torch.float64), x.T @ y * 2 / 60)
    assert torch.allclose(model.reward_weights.detach(), closed, atol=1e-8)


def test_a_reward_that_fits_its_data_errs_off_it_by_the_stated_amount():
    """The least-norm interpolator misses x by x times the truth's projection on the data's null space."""
    world = small(responses=12)
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1, 12, 8, generator=generator, dtype=torch.float64)
    truth = torch.randn(8, generator=generator, dtype=torch.float64)
    seen = torch.arange(5)
    x = features[0, seen]
    batch = ratings(world, 5, generator).fill(ids=seen[:, None], rating=x @ truth)
    model = TabularModel(world, features=features, dtype=torch.float64)
    maximise(model, Regression(), batch)  # from 0, every step stays in the span of what was seen
    error = (features[0] @ (model.reward_weights.detach() - truth)).abs()
    null = torch.eye(8, dtype=torch.float64) - torch.linalg.pinv(x) @ x
    assert error[seen].max() < 1e-6
    assert torch.allclose(error, (features[0] @ null @ truth).abs(), atol=1e-5)
    assert error[5:].max() > 0.1


def test_the_majority_wins_though_the_mean_loses():
    """60% gain 2, 40% lose 10: Bradley-Terry on their pooled labels prefers what the mean utility forbids."""
    world = small(responses=2)
    share = 0.6 / (1 + math.exp(-2)) + 0.4 / (1 + math.exp(10))
    assert share == pytest.approx(0.528, abs=5e-4) and 0.6 * 2 - 0.4 * 10 == pytest.approx(-2.8)
    preference = torch.tensor([share], dtype=torch.float64)
    batch = compared(world, torch.tensor([0]), torch.tensor([0]), torch.tensor([1]), preference=preference)
    found, _ = fitted(world, PLAIN, batch)
    assert (found[0, 0] - found[0, 1]).item() == pytest.approx(math.log(share / (1 - share)), abs=1e-6)


def test_even_pairs_give_the_borda_order():
    """With every pair equally often, Bradley-Terry orders responses by their mean probability of winning."""
    generator = torch.Generator().manual_seed(5)
    world = small(responses=5)
    first, second = torch.triu_indices(5, 5, 1)
    zeros = torch.zeros(len(first), dtype=torch.long)
    for _ in range(20):
        groups = torch.randn(3, 5, generator=generator, dtype=torch.float64) * 2
        wins = torch.sigmoid(groups[:, :, None] - groups[:, None, :]).mean(0)
        batch = compared(world, zeros, first, second, preference=wins[first, second])
        found, _ = fitted(world, PLAIN, batch)
        assert found[0].argsort().tolist() == wins.sum(1).argsort().tolist()
