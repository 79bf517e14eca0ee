"""Labels that move: one step by hand, its limits, and the bandit in which maximum likelihood trusts a lucky win."""

import math

import pytest
import torch

from assay.lab.bandit import Comparisons, descend, excess_cross_entropy, kl_frontier, star, wrong_arm_rate
from assay.rewards.ids import IDS, Labels
from assay.settings import InputError

MLE = IDS(beta=0.0, update="step")


def one_pair(label=1.0, share=1.0):
    """Two arms of which `share` of all comparisons speak, with one label; the rest compares two other arms."""
    first, second = torch.tensor([0, 2]), torch.tensor([1, 3])
    counts = torch.tensor([share, 1 - share], dtype=torch.float64) * 1000
    return Comparisons(first, second, counts, counts[None] * torch.tensor([label, 0.5]), torch.zeros(4).double())


@pytest.mark.parametrize(("order", "label"), [("simultaneous", 0.85), ("paper", 0.7 + 0.3 / (1 + math.exp(-0.1)))])
def test_one_step_by_hand(order, label):
    # r = 0, y = 1: s = 1/2, so each arm moves by 0.1 * 1/2; then y <- 0.7 y + 0.3 sigmoid(d), d = 0 or 0.1
    rewards, labels = descend(one_pair(share=1 - 1e-15), IDS(beta=0.3, order=order), lr=0.1, steps=1)
    assert rewards[0, :2].tolist() == pytest.approx([0.05, -0.05], abs=1e-12)
    assert labels[0, 0].item() == pytest.approx(label, abs=1e-12)


def test_beta_zero_is_maximum_likelihood_and_one_the_model_itself():
    labels, difference = torch.tensor([1.0, 0.3]), torch.tensor([0.4, -2.0])
    assert torch.equal(IDS(beta=0.0).move(labels, difference), labels)
    assert torch.equal(IDS(beta=1.0).move(labels, difference), torch.sigmoid(difference))


@pytest.mark.parametrize(("order", "bound"), [("simultaneous", 1e-8), ("paper", 1e-3)])
def test_the_limit_is_ridge_regression(order, bound):
    """Both updates from the old weights: theta solves grad L0 + (beta / lr) theta = 0, a ridge of beta / lr."""
    data = star(6, 40, 5, seed=1)
    lr, beta = 0.01, 0.001
    found, _ = descend(data, IDS(beta=beta, order=order), lr=lr, steps=40000)
    weight = data.counts / data.counts.sum()
    rewards = torch.zeros_like(found)
    for _ in range(60):  # Newton on the ridge problem, seed by seed
        for s in range(len(rewards)):
            difference = rewards[s, data.first] - rewards[s, data.second]
            share = torch.sigmoid(difference)
            x = torch.zeros(len(data.first), 6, dtype=torch.float64)
            x[torch.arange(len(data.first)), data.first] = 1
            x[torch.arange(len(data.first)), data.second] = -1
            gradient = x.T @ (weight * (share - data.wins[s] / data.counts)) + beta / lr * rewards[s]
            hessian = x.T @ torch.diag(weight * share * (1 - share)) @ x + beta / lr * torch.eye(6).double()
            rewards[s] -= torch.linalg.solve(hessian, gradient)
    assert (found - rewards).abs().max() < bound


@pytest.mark.parametrize(
    ("kappa", "difference"),
    [(0.1, 0.0488), (1 / 3, 0.1539), (1.0, 0.4011), (3.0, 0.8797), (10.0, 1.6335), (100.0, 3.3593)],
)
def test_how_much_of_a_label_survives(kappa, difference):
    """Two arms, share w of the data, kappa = 2 lr w / beta: d (1 + e^d) = kappa."""
    assert difference * (1 + math.exp(difference)) == pytest.approx(kappa, rel=2e-3)  # the table itself
    lr, beta = 0.01, 0.001
    share = kappa * beta / (2 * lr)
    while share >= 1:
        lr, share = lr * 10, share / 10
    ids = IDS(beta=beta, order="simultaneous")
    found, labels = descend(one_pair(share=share), ids, lr=lr, steps=40000)
    d = (found[0, 0] - found[0, 1]).item()
    assert d * (1 + math.exp(d)) == pytest.approx(kappa, rel=1e-5)
    assert labels[0, 0].item() == pytest.approx(1 / (1 + math.exp(-d)), abs=1e-6)


def test_maximum_likelihood_diverges_as_the_logarithm_of_time():
    """d + e^d - 1 = 2 lr w t."""
    found, _ = descend(one_pair(share=0.5), MLE, lr=0.01, steps=100000)
    d = (found[0, 0] - found[0, 1]).item()
    assert d + math.exp(d) - 1 == pytest.approx(2 * 0.01 * 0.5 * 100000, rel=0.01)


@pytest.mark.parametrize(("arms", "least"), [(3, 0.2), (10, 0.85), (20, 0.98)])
def test_a_lucky_win_leads_maximum_likelihood_astray_and_ids_not(arms, least):
    data = star(arms, 60, 200, seed=0)
    mle, _ = descend(data, MLE, lr=0.01, steps=30000)
    ids, _ = descend(data, IDS(beta=0.001), lr=0.01, steps=30000)
    assert wrong_arm_rate(mle, data.truth) >= least
    assert wrong_arm_rate(ids, data.truth) <= 0.01
    assert (ids.max(-1).values - ids.min(-1).values).mean() <= 2
    assert excess_cross_entropy(data, ids).mean() <= excess_cross_entropy(data, mle).mean() / 5


def test_optimising_maximum_likelihood_s_reward_first_helps_then_harms():
    data = star(10, 60, 200, seed=0)
    coefs = torch.logspace(1.5, -3, 60, dtype=torch.float64)
    reference = torch.full((10,), 0.1, dtype=torch.float64)
    curves = {}
    for name, ids in (("mle", MLE), ("ids", IDS(beta=0.001))):
        rewards, _ = descend(data, ids, lr=0.01, steps=30000)
        curves[name] = torch.stack([kl_frontier(r, data.truth, reference, coefs)[1] for r in rewards])
    mle = curves["mle"].mean(0)
    assert mle.max() > mle[-1] + 0.05
    rises = (curves["ids"].diff(dim=1) > -1e-9).all(1).double()
    assert rises.mean() >= 0.99 and curves["ids"].mean(0)[-1] >= 0.99


@pytest.mark.parametrize(("arms", "num"), [(6, 4), (1, 3)])
def test_a_star_compares_each_arm(arms, num):
    with pytest.raises(InputError, match=f"star: {num} comparisons of {arms} arms"):
        star(arms, num, 2)


def test_labels_are_found_by_their_keys_in_any_order():
    labels = Labels(torch.tensor([5, 9, 7]), torch.tensor([1.0, 0.0, 1.0]))
    labels.move(torch.tensor([7, 5]), torch.tensor([0.0, 2.0]), IDS(beta=0.5))
    expected = [0.5 + 0.5 / (1 + math.exp(-2)), 0.0, 0.75]
    assert labels.of(torch.tensor([5, 9, 7])).tolist() == pytest.approx(expected)


def test_labels_need_an_id_each():
    with pytest.raises(InputError, match="comparisons 1 and 2 have the same id"):
        Labels(torch.tensor([4, 5, 5]), torch.tensor([1.0, 1.0, 1.0]))


def test_beta_is_a_share():
    with pytest.raises(InputError, match=r"ids.beta must lie in \[0, 1\]"):
        IDS(beta=1.2)
