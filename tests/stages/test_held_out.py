"""The held-out figures read the very reward that was trained, whatever wraps the likelihood."""

import pytest
import torch

from assay.records import Comparison, Rating, reply, user_prompt
from assay.rewards.likelihoods import LIKELIHOODS, Annotators, Opinions, PerObjective, WithLanguage
from assay.rewards.model import Reward
from assay.rewards.readout import Readout
from assay.stages.held_out import pairs_of, rated, told_apart
from assay.stages.scoring import score_pairs


class Known(Reward):
    """Gives the numbers that stand in place of encoded conversations."""

    name, context = "known", 8

    def __init__(self, readout):
        self.readout = readout

    def outputs_encoded(self, encoded):
        return torch.tensor(encoded)


def judged(objective, annotator, chosen, rejected, place=0):
    prompt = user_prompt(f"{objective} {place}?")
    two = (reply("Hello!"), reply("No."))
    judgement = Comparison(prompt=prompt, responses=two, annotator=annotator, objective=objective)
    return judgement, [chosen, rejected]


def test_people_are_told_apart_by_the_reward_of_the_objective_they_judged():
    """Each objective's own reward is right; their mean is wrong about the first."""
    items = [judged("kind", "Ann", (1.0, 0.0), (0.0, 3.0)), judged("honest", "Bo", (0.0, 2.0), (0.0, 0.0))]
    likelihood = PerObjective(inner=Annotators(names=("Ann", "Bo")), names=("kind", "honest"))
    reward = Known(likelihood.readout)
    told = {name: {"temperature": 1.0, "order_bias": 0.0} for name in ("Ann", "Bo")}
    found = told_apart(reward, likelihood, items, told, score_pairs(reward, pairs_of(items)))
    assert found["held-out accuracy, annotators told apart"].value == 1.0


@pytest.mark.parametrize(
    ("name", "figure", "value"),
    [("binary", "held-out accuracy", 1.0), ("regression", "mean squared error", (9 + 9 + 0 + 1) / 4)],
)
def test_heads_keep_the_figures_of_the_likelihood_they_wrap(name, figure, value):
    heads, values = [(4.0, 4.0), (-2.0, -4.0), (-1.0, 1.0), (3.0, 1.0)], (1.0, 0.0, 0.0, 1.0)
    items = [
        (Rating(prompt=user_prompt(f"{i}?"), response=reply("Yes."), value=rating), [row])
        for i, (rating, row) in enumerate(zip(values, heads, strict=True))
    ]
    likelihood = Opinions(inner=LIKELIHOODS[name](), num=2)
    found = rated(Known(Readout(kind="ensemble")), likelihood, items)
    assert found[figure].value == pytest.approx(value)


def test_the_innermost_likelihood():
    inner = LIKELIHOODS["bradley_terry"]()
    assert WithLanguage(inner=Opinions(inner=inner, num=2), coef=1.0).innermost is inner.innermost is inner
