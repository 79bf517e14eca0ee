"""`check_gradient`: every likelihood's gradient against finite differences, and what it says of wrong ones."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from assay.rewards.likelihoods import LIKELIHOODS, Likelihood, Opinions, PerObjective, check_gradient
from assay.rewards.likelihoods.comparisons import BradleyTerry, Categorical, RaoKupper
from assay.rewards.likelihoods.rankings import KwiseBradleyTerry
from assay.rewards.likelihoods.ratings import Ordinal
from assay.settings import InputError
from assay.shapes import PairFloat, RowBool, RowFloat

WRAPPED = (
    Opinions(inner=BradleyTerry(), num=3),
    Opinions(inner=KwiseBradleyTerry(), num=2),
    Opinions(inner=Ordinal(), num=2),
    PerObjective(inner=RaoKupper(), names=("kind", "honest")),
    PerObjective(inner=KwiseBradleyTerry(), names=("kind", "honest", "brief")),
    PerObjective(inner=Ordinal(low=0, high=2), names=("kind", "honest")),
)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_has_the_gradient_of_its_loss(name, seed):
    people = {"names": ("Ann", "Bo")}
    filled = {"annotators": people, "annotator_groups": people, "spans": {"kinds": ("wrong", "rude")}}
    assert check_gradient(LIKELIHOODS[name](**filled.get(name, {})), seed=seed) < 1e-6


@pytest.mark.parametrize("likelihood", WRAPPED, ids=lambda it: f"{type(it).__name__} of {it.inner.name}")
def test_so_have_several_rewards_and_several_opinions(likelihood):
    assert check_gradient(likelihood) < 1e-6


@pytest.mark.parametrize(
    "likelihood", [Ordinal(low=0, high=9), Categorical(levels=3), BradleyTerry(label_smoothing=0.2)]
)
def test_other_settings_than_the_usual(likelihood):
    assert check_gradient(likelihood) < 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Own(Likelihood):
    """Squared difference from 1; `wrong` says what is not as it should be."""

    name: str = "own"
    wrong: str = ""

    @property
    def learned(self):
        return {"log_scale": torch.tensor([0.0, 0.5])} if self.wrong.startswith("scale") else {}

    def loss(self, out, batch):
        rewards = out.rewards
        if self.wrong == "rewards[3]":
            rewards = torch.where(torch.arange(len(rewards)) == 3, rewards.detach(), rewards)
        if self.wrong == "type":
            rewards = rewards.float()
        values = (rewards[0::2] - rewards[1::2] - 1) ** 2
        if self.wrong.startswith("scale"):
            scale = out.parameters["log_scale"]
            scale = torch.cat([scale[:1], scale[1:].detach()]) if self.wrong == "scale detached" else scale
            values = values * scale.exp().sum()
        if self.wrong == "constant":
            values = torch.zeros_like(values)
        if self.wrong == "infinite":
            values = values / torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
        if self.wrong == "mean":
            values = values.mean()
        if self.wrong == "no metrics":
            return values
        return values, {"share": values.mean() if self.wrong == "metric" else values}


class Twice(torch.autograd.Function):
    """The square with twice its gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return 4 * ctx.saved_tensors[0] * grad


class WrongBackward(Own):
    """A backward of its own."""

    __slots__ = ()

    def loss(self, out, batch):
        values = Twice.apply(out.rewards[0::2] - out.rewards[1::2])
        return values, {}


@pytest.mark.parametrize("wrong", ["", "scale"])
def test_a_likelihood_of_ones_own_passes(wrong):
    assert check_gradient(Own(wrong=wrong)) < 1e-6


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("rewards[3]", r"the gradient of rewards\[3\] is 0, but by finite differences -?\d"),
        ("scale detached", r"the gradient of log_scale\[1\] is 0, but by finite differences"),
        ("constant", "depends on none of rewards"),
        ("infinite", r"value 1 is inf on ordinary rewards"),
        ("mean", r"the loss must have the shape \(6,\), one value for each pair; got \(\)"),
        ("metric", r"the metric 'share' must have the shape \(6,\)"),
        ("type", "rewards in float64 gave a loss in torch.float32"),
        ("no metrics", "must return the values and a dictionary of metrics; got Tensor"),
    ],
)
def test_a_wrong_one_is_refused_with_what_is_wrong(wrong, told):
    with pytest.raises(InputError, match=rf"Own\.loss:? ?.*{told}"):
        check_gradient(Own(wrong=wrong))


def test_a_wrong_backward_is_found():
    """Twice the gradient everywhere: the entry with the largest is named."""
    with pytest.raises(InputError, match=r"WrongBackward.loss: the gradient of rewards\[\d+\] is"):
        check_gradient(WrongBackward())
    assert check_gradient(WrongBackward(), tolerance=1) == pytest.approx(0.5)


def test_a_gradient_that_is_no_number_is_found():
    class Nan(Own):
        __slots__ = ()

        def loss(self, out, batch):
            difference = out.rewards[0::2] - out.rewards[1::2]
            safe = torch.where(difference > 1e3, torch.sqrt(difference - 1e3), difference)  # forward alone is right
            return safe, {}

    with pytest.raises(InputError, match=r"the gradient of rewards\[\d\] is nan"):
        check_gradient(Nan())


def declared(**attributes: Any) -> Likelihood:
    """Own with other class attributes."""
    return type("Declared", (Own,), {"__slots__": (), **attributes})()


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"data": "rollouts"}, "Declared.data: 'rollouts' cannot be checked; known are comparisons, rankings, ratings"),
        ({"data": "ratings"}, "Declared.columns must declare 'rating', in which ratings come"),
        ({"reduction": "token"}, "comparisons are reduced by 'pair' or 'response'; got 'token'"),
        ({"reads": ("logprobs",)}, "Declared.reads: 'logprobs' cannot be checked"),
        ({"columns": {"odd": RowBool}}, "Declared.columns: 'odd' cannot be made up"),
    ],
)
def test_what_cannot_be_checked_is_said(attributes, told):
    with pytest.raises(InputError, match=told):
        check_gradient(declared(**attributes))


def test_declared_columns_are_made_up():
    class Weighted(Own):
        __slots__ = ()
        columns: ClassVar = {"sure": RowFloat, "margin": PairFloat}

        def loss(self, out, batch):
            return batch.sure[0::2] * torch.exp(batch.margin + out.rewards[1::2] - out.rewards[0::2]), {}

    assert check_gradient(Weighted()) < 1e-6
