"""SALMON where answers have eight attributes: what a model told principles learns, a side effect taken back."""

from random import Random

import pytest
import torch

from assay.algorithms import PPO, RLOO
from assay.lab.rollouts import TabularRollouts
from assay.lab.tabular import TabularModel
from assay.lab.world import World, tokens_of
from assay.losses.preference import bradley_terry
from assay.records import Comparison, reply, user_prompt
from assay.rewards.principles import Principle
from assay.rewards.salmon import Aggregation, build_preferences
from lab.training import training

NAMES = ("brief", "kind", "true", "clear", "calm", "warm", "exact", "open")
PRINCIPLES = tuple(Principle(name=n, text=f"Be {n}.", negation=f"Do not be {n}.") for n in NAMES)
APART = ({"brief", "kind"}, {"true", "calm"}, {"warm", "open"})  # never told together while it learns


class Instructable:
    """r(answer; told) = told^T W attributes, told [2K]: one place for each principle and one for its negation."""

    def __init__(self, size=8):
        self.weights = torch.zeros(2 * size, size, dtype=torch.float64, requires_grad=True)

    def gaps(self, told, differences):
        return (told @ self.weights * differences).sum(-1)

    def fit(self, told, differences, preference, prior=1e-3):
        optimiser = torch.optim.LBFGS([self.weights], max_iter=200, line_search_fn="strong_wolfe")

        def closure():
            optimiser.zero_grad()
            gaps = self.gaps(told, differences).float()
            loss = bradley_terry(gaps, torch.zeros_like(gaps), preference=preference).mean()
            loss = loss + prior / 2 * (self.weights**2).sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        return self


def world(num, seed):
    """Attribute gaps [N, 8] and a noisy judge's log-odds in both orders [N, 8, 2]."""
    generator = torch.Generator().manual_seed(seed)
    gaps = torch.randn(num, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(num, 8, 2, generator=generator, dtype=torch.float64)
    return gaps, gaps[..., None] + 0.2 * noise


def labelled(num, seed, settings):
    """What the model is told [M, 16], the two responses' gaps [M, 8], drawn and clean labels [M], sets of names."""
    gaps, judged = world(num, seed)
    pairs = [
        Comparison(prompt=user_prompt(f"{i}"), responses=(reply(f"First {i}."), reply(f"Second {i}.")))
        for i in range(num)
    ]
    made = build_preferences(pairs, judged, PRINCIPLES, settings, rng=Random(seed))
    told = torch.zeros(len(made), 16, dtype=torch.float64)
    for row, one in enumerate(made):
        for name, sign in zip(one.meta["principles"], one.meta["signs"], strict=True):
            told[row, NAMES.index(name) + (0 if sign > 0 else 8)] = 1
    places = [int(one.prompt.messages[0].content) for one in made]
    first_shown = torch.tensor([one.responses[0][0].content.startswith("First") for one in made])
    labels = torch.tensor([(one.preference, one.meta["clean"]) for one in made]).unbind(-1)
    drawn, clean = (torch.where(first_shown, told, 1 - told) for told in labels)  # of the original pair's first
    return told, gaps[places], drawn, clean, [set(one.meta["principles"]) for one in made]


def together(names):
    """Whether a combination is told that was kept from training."""
    return any(pair <= names for pair in APART)


def agreement(gaps, clean):
    return float(((gaps > 0) == (clean > 0.5)).double().mean())


@pytest.fixture(scope="module")
def fitted():
    told, differences, drawn, _, names = labelled(3000, 0, Aggregation())
    kept = torch.tensor([not together(n) for n in names])
    model = Instructable().fit(told[kept], differences[kept], drawn[kept].float())
    blind = Instructable().fit(torch.ones_like(told[kept]) / 16, differences[kept], drawn[kept].float())
    return model, blind


def test_an_instructed_model_follows_principles_it_was_told(fitted):
    """Labels are 10% wrong and decided by the strongest principle alone, which a sum of them cannot say exactly."""
    model, blind = fitted
    told, differences, _, clean, names = labelled(2000, 1, Aggregation(passes=2, flip=0.0))
    unseen = torch.tensor([together(n) for n in names])
    assert 500 < unseen.sum() < len(unseen) - 500
    gaps = model.gaps(told, differences).detach()
    assert agreement(gaps[~unseen], clean[~unseen]) >= 0.8
    assert agreement(gaps[unseen], clean[unseen]) >= 0.75  # sets of principles it never saw together
    turned = model.gaps(told.roll(8, 1), differences).detach()
    assert float((torch.sign(gaps) != torch.sign(turned)).double().mean()) >= 0.9
    guessed = blind.gaps(torch.ones_like(told) / 16, differences).detach()
    assert agreement(guessed, clean) == pytest.approx(0.5, abs=0.04)  # 4 standard errors of two thousand pairs


def counts():
    """[O, 3] how often each of three tokens is in each response of four: the attributes."""
    return torch.nn.functional.one_hot(tokens_of(torch.arange(81), 3, 4), 3).sum(1).double()


def optimise(language, rewards, algorithm, seed):
    """[O] the policy that 400 steps of 4 prompts with 4 answers end at, from the reference."""
    torch.manual_seed(seed)
    model = TabularModel(language)
    rollouts = TabularRollouts(model, num_prompts=4, num_answers=4, rewards=rewards[None], seed=seed)
    training(model, algorithm, rollouts, steps=400, lr=0.05).run(lambda _: None)
    return model.probabilities[0]


ALGORITHMS = (RLOO(kl_coef=0.3), PPO(kl_coef=0.3, vf_coef=1.0, num_epochs=1, num_minibatches=1))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_a_principle_told_at_rl_time_takes_a_side_effect_back_without_a_label(algorithm, seed):
    """The judge of "kind" half believes that whatever is long is kind; so does the model, and so the policy."""
    generator = torch.Generator().manual_seed(3)
    gaps = torch.randn(4000, 2, generator=generator, dtype=torch.float64)  # of kindness and of length
    opinions = torch.stack([gaps[:, 0] + 0.7 * gaps[:, 1], gaps[:, 1]], -1)
    which = torch.randint(2, (4000,), generator=generator)
    sign = 2 * torch.randint(2, (4000,), generator=generator) - 1
    told = torch.nn.functional.one_hot(which + 2 * (sign < 0), 4).double()
    labels = torch.rand(4000, generator=generator) < torch.sigmoid(sign * opinions.gather(1, which[:, None])[:, 0])
    model = Instructable(2).fit(told, gaps, labels.float())

    attributes = counts()[:, 1:]  # token 1 is kind, token 2 long, token 0 neither
    language = World.random(contexts=1, vocabulary=3, horizon=4, spread=0.3, seed=2)

    def means(policy):
        return (policy[:, None] * attributes).sum(0)

    def reward(*words):
        chosen = torch.zeros(4, dtype=torch.float64)
        chosen[[("kind", "long", "not:kind", "not:long").index(word) for word in words]] = 1
        return (chosen @ model.weights.detach() * attributes).sum(-1)

    reference = means(language.reference_probs[0])
    hacked = means(optimise(language, reward("kind"), algorithm, seed))
    mended = means(optimise(language, reward("kind", "not:long"), algorithm, seed))
    assert hacked[0] > reference[0] + 0.5 and hacked[1] > reference[1] + 0.1
    assert mended[1] < reference[1] - 0.5
    assert mended[0] - reference[0] >= 0.8 * (hacked[0] - reference[0])
