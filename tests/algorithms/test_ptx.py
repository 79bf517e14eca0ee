"""Text that is not to be forgotten: what its likelihood costs in reward, and what is lost without it."""

import pytest
import torch

from assay.algorithms.ppo import PPO
from assay.lab.rollouts import TabularRollouts
from assay.lab.tabular import TabularModel, batch_of
from assay.lab.world import World
from lab.training import Everything, WithText, training


def text_of(world, kind):
    """[C, O] what the further stream says: as the reference does, or as another speaker."""
    if kind == "reference":
        return world.reference_probs
    return World.random(contexts=2, vocabulary=3, horizon=2, seed=1234).reference_probs


def nll(world, policy, text):
    return float(-(world.contexts @ (text * policy.log()).sum(-1)))


def path(world, text, ptx_coef, seed, steps=150):
    """(reward, negative log-likelihood of the text) of the policy before training and after each step."""
    torch.manual_seed(seed)
    model, seen = TabularModel(world), []
    batches = WithText(TabularRollouts(model, num_prompts=16, num_answers=4, seed=seed), world, text, seed)
    algorithm = PPO(kl_coef=0.0, num_epochs=2, vf_coef=1.0, ptx_coef=ptx_coef)

    def look(_=None):
        seen.append((float(world.value(model.probabilities)), nll(world, model.probabilities, text)))

    look()
    training(model, algorithm, batches, steps=steps, lr=0.05).run(look)
    return seen


@pytest.mark.parametrize("kind", ["reference", "another speaker"])
def test_at_the_same_reward_the_text_is_likelier(kind):
    """Means of its last steps against each of the other run's that had as much reward or more; the end is far off."""
    for seed in range(2):
        world = World.random(contexts=2, vocabulary=3, horizon=2, seed=seed)
        text = text_of(world, kind)
        kept, free = path(world, text, 0.5, seed), path(world, text, 0.0, seed)
        reward, left = torch.tensor(kept[-20:]).mean(0).tolist()
        assert reward > kept[0][0] + 0.3
        assert left < free[-1][1] - 1 and reward < free[-1][0]
        assert left < min(other for gained, other in free if gained >= reward) - 0.1


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_it_ends_at_the_best_of_reward_and_likelihood_together(beta):
    """The maximum of E R - beta KL + coef E_text log pi, which is concave in pi.

    Its slope R - beta log pi / pi_ref + coef text / pi is then the same for all responses to a context, and by how much
    the greatest exceeds the mean bounds what is left to gain.
    """
    coef = 0.3
    world = World.random(contexts=2, vocabulary=3, horizon=2, seed=3)
    text = world.reference_probs
    contexts = torch.arange(2).repeat_interleave(9)
    responses = torch.arange(9).repeat(2)
    weight = (world.contexts[:, None] * text).flatten().float()
    model = TabularModel(world)
    stream = {"ptx": batch_of(world, contexts, responses, weight=weight)}
    algorithm = PPO(kl_coef=beta, lam=1.0, vf_coef=1.0, whiten_advantages=False, num_epochs=1, ptx_coef=coef)
    training(model, algorithm, Everything(model, streams=stream), steps=300, lr=0.05, schedule="linear").run(
        lambda _: None
    )

    def left(policy):
        slope = world.oracle - beta * (policy.log() - text.log()) + coef * text / policy
        return float((slope.amax(-1) - (policy * slope).sum(-1)).max())

    assert left(model.probabilities) < 0.01 and left(text) > 0.5
