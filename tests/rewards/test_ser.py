"""Self-labelling: which pairs it takes, that it cannot cheat, and what it gains where there is something to gain."""

import math

import pytest
import torch

from assay.rewards.ser import SER, choose, evolve, passes
from assay.settings import InputError

UNION = SER(status="union", min_selected=1)


def logit(*rows):
    return torch.logit(torch.tensor(rows, dtype=torch.float64))


@pytest.mark.parametrize(
    ("pair", "taken", "turned"),
    [
        ((0.56, 0.44), True, False),
        ((0.55, 0.44), False, False),
        ((0.85, 0.50), True, False),
        ((0.79, 0.50), False, False),
        ((0.44, 0.56), True, True),
    ],
)
def test_the_filters_are_strict(pair, taken, turned):
    places, swaps, _ = choose(logit(pair), UNION)
    assert (len(places) == 1) == taken and swaps.tolist() == [turned] * taken


def test_the_order_of_a_pair_does_not_leak():
    rewards = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    places, turned, _ = choose(rewards, UNION)
    other_places, other_turned, _ = choose(rewards.flip(1), UNION)
    assert torch.equal(places, other_places) and torch.equal(turned, ~other_turned)


def test_the_offset_decides_s1_unless_it_is_taken_off():
    rewards = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 0.6
    rewards = rewards - rewards.mean()
    plain = SER(status="s1", min_selected=1)
    assert passes(rewards, plain)[0].any() and not passes(rewards + 3, plain)[0].any()
    centred = SER(status="s1", min_selected=1, centre=True)
    assert torch.equal(passes(rewards + 3, centred)[0], passes(rewards, centred)[0])


def test_the_status_rule():
    """s1 where it finds enough, else s2, else nothing."""
    both = logit((0.9, 0.1), (0.9, 0.55), (0.95, 0.6), (0.5, 0.5))
    assert choose(both, SER(min_selected=1))[2] == "s1"
    assert choose(both, SER(min_selected=2))[2] == "s2"
    assert choose(both, SER(min_selected=4))[2] == ""


def test_a_tie_of_rewards_is_half_right_over_the_pool():
    rewards = torch.tensor([[2.0, -2.0], [0.0, 0.0], [0.0, 0.0]])
    found = evolve(
        None, [], [0, 1, 2], SER(min_selected=1, max_loops=1), score=lambda model, pairs: rewards,
        fit=lambda model, pairs: None, swap=lambda pair: pair, right=lambda pair: True,
    )  # fmt: skip
    assert found.loops[0].precision == 1.0 and found.loops[0].whole == pytest.approx(2 / 3)


@pytest.mark.parametrize("tau", [-0.1, 1.5, math.nan])
def test_a_difference_of_probabilities_is_one(tau):
    with pytest.raises(InputError, match=r"tau_delta must lie in \[0, 1\]"):
        SER(tau_delta=tau)


def test_bounds_that_cross_are_refused():
    with pytest.raises(InputError, match="must rise"):
        SER(tau_low=0.7)


class Clusters:
    """Good and bad answers around +1.2 and -1.2 times a direction of R^100; a pair is [2, 100], the better first."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(100, generator=generator)
        direction = 1.2 * direction / direction.norm()

        def pairs(num):
            noise = torch.randn(num, 2, 100, generator=generator)
            return [pair + torch.stack([direction, -direction]) for pair in noise]

        self.seed = [p.flip(0) if torch.rand((), generator=generator) < 0.1 else p for p in pairs(100)]
        self.full = pool = pairs(3900)
        turned = torch.rand(3900, generator=generator) < 0.5
        self.pool = [pair.flip(0) if turn else pair for pair, turn in zip(pool, turned, strict=True)]
        self.test = torch.stack(pairs(1000))
        self.direction = direction

    def truly(self, pair):
        return bool((pair[0] - pair[1]) @ self.direction > 0)

    def accuracy(self, weights):
        return float((((self.test[:, 0] - self.test[:, 1]) @ weights) > 0).float().mean())


def ridge(_, pairs):
    """Logistic regression on differences, a ridge of 0.2 on the mean loss, by Newton."""
    x = torch.stack([a - b for a, b in pairs]).double()
    penalty = 0.2 * len(x)
    weights = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(12):
        share = torch.sigmoid(x @ weights)
        hessian = (x * (share * (1 - share))[:, None]).T @ x + penalty * torch.eye(x.shape[1]).double()
        weights = weights + torch.linalg.solve(hessian, x.T @ (1 - share) - penalty * weights)
    return weights.float()


def run(world, seed_pairs, settings):
    model = ridge(None, seed_pairs)
    accuracies = [world.accuracy(model)]
    found = evolve(
        model,
        seed_pairs,
        world.pool,
        settings,
        score=lambda weights, pairs: torch.stack(pairs) @ weights,
        fit=ridge,
        swap=lambda pair: pair.flip(0),
        right=world.truly,
        report=lambda loop, weights: accuracies.append(world.accuracy(weights)),
    )
    return found, accuracies


def test_it_gains_where_there_is_something_to_gain():
    """Ten worlds of 100 people's labels, a tenth of them wrong, and 3,900 pairs without."""
    gains, precisions = [], []
    for seed in range(10):
        world = Clusters(seed)
        found, accuracies = run(world, world.seed, SER(status="union", min_selected=1, warm_start=False))
        gains.append(accuracies[-1] - accuracies[0])
        precisions.append(found.loops[0].precision)
        assert found.loops[0].precision > found.loops[0].whole
    assert sum(gains) / 10 >= 0.04 and min(gains) >= 0.02
    assert sum(precisions) / 10 >= 0.85


def test_there_is_nothing_in_random_labels():
    accuracies = []
    for seed in range(10):
        world = Clusters(seed)
        flips = torch.rand(100, generator=torch.Generator().manual_seed(seed)) < 0.5
        random = [pair.flip(0) if flip else pair for pair, flip in zip(world.seed, flips, strict=True)]
        accuracies.append(run(world, random, SER(status="union", min_selected=1, warm_start=False))[1][-1])
    assert 0.45 <= sum(accuracies) / 10 <= 0.55


def test_too_few_sure_pairs_leave_the_model_as_it_was():
    world = Clusters(0)
    model = ridge(None, world.seed)
    found, accuracies = run(world, world.seed, SER(min_selected=5000))
    assert found.loops == () and len(accuracies) == 1 and torch.equal(found.model, model)
    assert found.stopped == "loop 1 found fewer than 5000 sure pairs"


def test_precision_is_unknown_without_the_truth():
    world = Clusters(0)
    found = evolve(
        ridge(None, world.seed), world.seed, world.pool, SER(status="union", min_selected=1, max_loops=1),
        score=lambda w, pairs: torch.stack(pairs) @ w, fit=ridge, swap=lambda pair: pair.flip(0),
    )  # fmt: skip
    assert math.isnan(found.loops[0].precision) and found.stopped == "1 loops were run"
