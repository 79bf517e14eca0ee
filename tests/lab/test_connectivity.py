"""Where comparisons leave rewards open: a likelihood that is flat, or that has no highest point."""

import pytest
import torch

from assay.feedback.graph import unconnected
from assay.lab.feedback import compared
from assay.lab.fit import loss_of, maximise
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from assay.records import Comparison, reply, user_prompt
from assay.rewards.likelihoods.comparisons import BradleyTerry

PLAIN = BradleyTerry(centring_coef=0.0)
WORLD = World.random(contexts=1, vocabulary=4, horizon=1, seed=0)  # one context, four answers
APART = ((0, 1, 0.75), (2, 3, 0.6))  # first, second, P(first preferred)
BRIDGE = (1, 2, 0.8)
SHIFT = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)


def records(*told):
    return [
        Comparison(
            prompt=user_prompt("Which?"), responses=(reply(str(first)), reply(str(second))), preference=preference
        )
        for first, second, preference in told
    ]


def table(*told):
    first, second, preference = zip(*told, strict=True)
    return compared(
        WORLD,
        torch.zeros(len(told), dtype=torch.long),
        torch.tensor(first),
        torch.tensor(second),
        preference=torch.tensor(preference, dtype=torch.float64),
    )


def fitted(batch):
    model = TabularModel(WORLD, dtype=torch.float64)
    maximise(model, PLAIN, batch)
    return model


def loss_at(rewards, batch):
    model = TabularModel(WORLD, dtype=torch.float64)
    model.reward_weights.data.copy_(rewards)
    return loss_of(model, PLAIN, batch).item()


def logit(share):
    return torch.logit(torch.tensor(share, dtype=torch.float64)).item()


def test_between_unconnected_parts_the_likelihood_is_flat():
    """Any shift of one part against the other gives the same loss, to the last bit."""
    (gap,) = unconnected(records(*APART))
    assert gap.parts == (("0", "1"), ("2", "3"))
    batch = table(*APART)
    best = (fitted(batch).rewards.detach() * 2**30).round() / 2**30  # so that shifts by powers of 2 do not round
    losses = {loss_at(best + shift * SHIFT, batch) for shift in (0, 1, -8, 1024)}
    assert len(losses) == 1
    assert best[0, 0] - best[0, 1] == pytest.approx(logit(0.75), abs=1e-6), "within a part all is known"
    assert loss_at(best + torch.tensor([[0.0, 1.0, 0.0, 0.0]]), batch) > min(losses) + 0.01


def test_one_comparison_between_them_fixes_the_difference():
    assert unconnected(records(*APART, BRIDGE)) == []
    batch = table(*APART, BRIDGE)
    found = fitted(batch).rewards.detach()
    gaps = (found[0, 0] - found[0, 1], found[0, 1] - found[0, 2], found[0, 2] - found[0, 3])
    assert [gap.item() for gap in gaps] == pytest.approx([logit(share) for share in (0.75, 0.8, 0.6)], abs=1e-6)
    lowest = loss_at(found, batch)
    assert all(loss_at(found + shift * SHIFT, batch) > lowest + 0.01 for shift in (1, -1))


def test_who_always_wins_has_no_best_reward():
    """1 and 2 beat each other, 0 beats both every time: the higher its reward the better, without end."""
    always = ((0, 1, 1.0), (0, 2, 1.0), (1, 2, 0.5))
    batch = table(*always)
    rewards = torch.zeros(1, 4, dtype=torch.float64)
    losses = [loss_at(rewards + height * torch.tensor([[1.0, 0, 0, 0]]), batch) for height in (0, 1, 4, 16)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 4
    sometimes = (*always, (1, 0, 1.0))
    found = fitted(table(*sometimes)).rewards.detach()
    assert found.isfinite().all() and loss_at(found + torch.tensor([[4.0, 0, 0, 0]]), table(*sometimes)) > loss_at(
        found, table(*sometimes)
    )
