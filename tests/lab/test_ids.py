"""Labels that move: one step by hand, its limits, and the bandit in which maximum likelihood trusts a lucky win."""

import math

import pytest
import torch

from assay.batch import TokenBatch
from assay.lab.bandit import Comparisons, descend, excess_cross_entropy, kl_frontier, star, wrong_arm_rate
from assay.rewards.ids import IDS, Labels
from assay.settings import InputError
from assay.train.moving import Moving

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


@pytest.mark.parametrize("order", ["simultaneous", "paper"])
def test_beta_zero_is_maximum_likelihood(order):
    """The same bits as descent that knows no labels that move."""
    data = star(5, 12, 4, seed=1)
    found, _ = descend(data, IDS(beta=0.0, order=order), lr=0.1, steps=50)
    rewards = torch.zeros(4, 5, dtype=torch.float64)
    for _ in range(50):
        difference = rewards[:, data.first] - rewards[:, data.second]
        push = data.counts / data.counts.sum() * (data.wins / data.counts - torch.sigmoid(difference))
        rewards = rewards.index_add(1, data.first, 0.1 * push).index_add(1, data.second, -0.1 * push)
    assert torch.equal(found, rewards)


def test_beta_one_is_the_model_itself():
    labels, difference = torch.tensor([1.0, 0.3]), torch.tensor([0.4, -2.0])
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


SURVIVING = ((0.1, 0.0488), (1 / 3, 0.1539), (1.0, 0.4011), (3.0, 0.8797), (10.0, 1.6335), (100.0, 3.3593))


@pytest.mark.parametrize(("order", "bound"), [("simultaneous", 1e-6), ("paper", 5e-3)])
def test_how_much_of_a_label_survives(order, bound):
    """Pairs of arms of their own, shares w of the data, kappa = 2 lr w / beta: d (1 + e^d) = kappa."""
    kappas = torch.tensor([kappa for kappa, _ in SURVIVING], dtype=torch.float64)
    counts, arms = kappas / kappas.sum(), torch.arange(12)
    data = Comparisons(arms[0::2], arms[1::2], counts, counts[None], torch.zeros(12).double())  # every label is 1
    lr = 0.01
    beta = 2 * lr / kappas.sum().item()
    found, labels = descend(data, IDS(beta=beta, order=order), lr=lr, steps=round(20 / beta))
    for (kappa, told), d, label in zip(SURVIVING, (found[0, 0::2] - found[0, 1::2]).tolist(), labels[0], strict=True):
        low, high = 0.0, 10.0
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (middle, high) if middle * (1 + math.exp(middle)) < kappa else (low, middle)
        assert low == pytest.approx(told, abs=5e-5)  # the table has four decimals
        assert d == pytest.approx(low, abs=bound)
        assert label.item() == pytest.approx(1 / (1 + math.exp(-d)), abs=1e-6)


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
    # an arm compared once that won has no finite reward under maximum likelihood: 1 - sigmoid(1)^(K - 2) of all seeds
    lucky = (data.wins[:, 1:] == 0).any(1)
    assert torch.equal(mle.argmax(-1) != 0, lucky | (data.wins[:, 0] < data.counts[0] / 2))
    expected = 1 - (1 / (1 + math.exp(-1))) ** (arms - 2)
    rate = wrong_arm_rate(mle, data.truth)
    assert rate >= least and abs(rate - expected) <= 3 * math.sqrt(expected * (1 - expected) / 200)
    assert wrong_arm_rate(ids, data.truth) <= 0.01  # 4 of 800 at ten arms: where nearly every single comparison is lost
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
    rises = (curves["ids"].diff(dim=1) > -1e-9).all(1)
    assert rises[rewards.argmax(-1) == 0].all()  # wherever it finds the arm
    assert rises.double().mean() >= 0.99 and curves["ids"].mean(0)[-1] >= 0.99


@pytest.mark.parametrize(("arms", "num"), [(6, 4), (1, 3)])
def test_a_star_compares_each_arm(arms, num):
    with pytest.raises(InputError, match=f"star: {num} comparisons of {arms} arms"):
        star(arms, num, 2)


def test_labels_are_found_by_their_keys_in_any_order():
    labels = Labels(torch.tensor([5, 9, 7]), torch.tensor([1.0, 0.0, 1.0]))
    labels.move(torch.tensor([7, 5]), torch.tensor([0.0, 2.0]), IDS(beta=0.5))
    expected = [0.5 + 0.5 / (1 + math.exp(-2)), 0.0, 0.75]
    assert labels.of(torch.tensor([5, 9, 7])).tolist() == pytest.approx(expected)


class Turned:
    """Comparisons 0 to 3, two a batch, each epoch in another order."""

    def __init__(self):
        self.order, self.place = [2, 0, 3, 1, 1, 3, 0, 2, 3, 2, 1, 0], 0

    def next(self):
        keys = torch.tensor(self.order[self.place : self.place + 2]).repeat_interleave(2)
        self.place += 2
        return {"main": TokenBatch(key=keys)}


@pytest.mark.parametrize("order", ["simultaneous", "paper"])
def test_labels_stay_with_their_comparisons_whatever_the_order(order):
    """Four different labels, three epochs in three orders: each moves towards what is believed of it, three times."""
    start, believed = torch.tensor([1.0, 0.0, 0.3, 0.5]), torch.tensor([2.0, -1.0, 0.0, 4.0])
    ids = IDS(beta=0.25, update="step", order=order)
    labels = Labels(torch.arange(4), start)
    moving = Moving(Turned(), labels, ids, lambda batch: believed[batch.key[0::2]])
    given: dict[int, list[float]] = {}
    for _ in range(6):
        main = moving.next()["main"]
        for key, label in zip(main.key[0::2].tolist(), main.preference.tolist(), strict=True):
            given.setdefault(key, []).append(label)
    for key in range(4):
        label, told = start[key].item(), []
        for _ in range(3):
            told.append(label)
            label = 0.75 * label + 0.25 / (1 + math.exp(-believed[key].item()))
        assert given[key] == pytest.approx(told)


def test_labels_need_an_id_each():
    with pytest.raises(InputError, match="comparisons 1 and 2 have the same id"):
        Labels(torch.tensor([4, 5, 5]), torch.tensor([1.0, 1.0, 1.0]))


def test_beta_is_a_share():
    with pytest.raises(InputError, match=r"ids.beta must lie in \[0, 1\]"):
        IDS(beta=1.2)
