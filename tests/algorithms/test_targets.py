"""Where each method ends: trained to the end in worlds where that can be written down."""

import pytest
import torch

from assay.algorithms.apa import APA
from assay.algorithms.dpo import DPO
from assay.algorithms.grpo import GRPO
from assay.algorithms.nash_md import NashMD
from assay.algorithms.online_dpo import OnlineDPO
from assay.algorithms.p3o import P3O
from assay.algorithms.ppo import PPO, PPOMax
from assay.algorithms.reinforce import REINFORCE
from assay.algorithms.reinforce_pp import REINFORCEPP
from assay.algorithms.remax import ReMax
from assay.algorithms.rloo import RLOO
from assay.algorithms.sft import SFT
from assay.algorithms.sppo import SPPO
from assay.algorithms.xpo import XPO
from assay.engine.learner import Learner
from assay.engine.optimizer import FlatAdamW
from assay.lab.rollouts import every_group, world_of
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from assay.train.loop import CheckpointSettings, OptimiserSettings, Training
from lab.training import paired

BETA = 0.5


class Everything:
    """All that can be sampled from the policy as it stands, weighed: training without noise."""

    def __init__(self, model, algorithm, size, rewards):
        self.model, self.algorithm, self.size, self.rewards = model, algorithm, size, rewards

    def next(self):
        mixture = getattr(self.algorithm, "mixture", 0.0)
        batch = every_group(self.model, self.size, self.rewards, draws=self.algorithm.draws, mixture=mixture)
        return {"main": paired(batch) if self.algorithm.reduction == "pair" else batch}


class Given:
    """The same batch for ever."""

    def __init__(self, batch):
        self.batch = batch

    def next(self):
        return {"main": self.batch}


def train(
    folder, world, algorithm, *, size=1, steps=300, lr=0.05, rewards=None, schedule="linear", batches=None, model=None
):
    model = model or TabularModel(world, dtype=torch.float32)
    learner = Learner(model, FlatAdamW(model.named_parameters(), lr=lr))
    training = Training(
        algorithm,
        {"policy": learner, "value": learner, "reference": Learner(TabularModel(world))},
        batches or Everything(model, algorithm, size, world.oracle if rewards is None else rewards),
        num_steps=steps,
        optimiser=OptimiserSettings(lr=lr, warmup=0.0, schedule=schedule, max_norm=1e9),
        checkpoints=CheckpointSettings(every=0),
        folder=folder,
        identity={},
    )
    training.run(lambda _: None)
    return model


@pytest.fixture
def world():
    return World.random(contexts=2, vocabulary=3, horizon=2, seed=5)


REGULARISED = [
    (REINFORCE(kl_coef=BETA), 1),
    (ReMax(kl_coef=BETA), 1),
    (RLOO(kl_coef=BETA), 2),
    (GRPO(kl_coef=BETA, kl_in="reward", scale="none", average="sum"), 2),
    (P3O(kl_coef=BETA), 2),
    (P3O(kl_coef=BETA, clipping="joint"), 2),
    (PPO(kl_coef=BETA, lam=0.95, vf_coef=1.0, value_clip=0.0, whiten_advantages=False), 1),
    (REINFORCEPP(kl_coef=BETA, num_epochs=1), 1),
]


@pytest.mark.parametrize(("algorithm", "size"), REGULARISED, ids=lambda x: getattr(x, "name", str(x)))
def test_kl_regularised_methods_reach_the_tilted_reference(world, algorithm, size, tmp_path):
    """pi* ~ pi_ref exp(R / beta), paper sec. 6.2."""
    model = train(tmp_path, world, algorithm, size=size)
    assert float(world.kl(model.probabilities, world.optimum(BETA))) < 1e-3
    assert float(world.kl(world.reference_probs, world.optimum(BETA))) > 0.2  # it had some way to go


def test_at_three_tokens_ppo_max_reaches_it_too(tmp_path):
    world = World.random(contexts=1, vocabulary=3, horizon=3, seed=5)
    algorithm = PPOMax(kl_coef=BETA, reward_norm="none", reward_clip=0.0, vf_coef=1.0, value_clip=0.0)
    found, best = train(tmp_path, world, algorithm).probabilities, world.optimum(BETA)
    assert float((found - best).abs().sum()) / 2 < 0.05 < float((world.reference_probs - best).abs().sum()) / 2 - 0.2


def test_dpo_fits_the_preferences_it_is_given(world, tmp_path):
    """All pairs of the reference's answers, each preferred with its probability: the policy is the tilted reference."""
    batch = every_group(TabularModel(world), 2, world.oracle)
    pairs = Given(paired(batch).fill(preference=torch.sigmoid(batch.rewards[0::2] - batch.rewards[1::2])))
    model = train(tmp_path, world, DPO(beta=BETA), steps=400, batches=pairs)
    assert float(world.kl(model.probabilities, world.optimum(BETA))) < 1e-3


def test_sft_becomes_who_it_imitates(world, tmp_path):
    other = World.random(contexts=2, vocabulary=3, horizon=2, seed=11)
    shown = Given(every_group(TabularModel(other), 1, world.oracle))
    model = train(tmp_path, world, SFT(), steps=400, batches=shown)
    assert float(world.kl(other.reference_probs, model.probabilities)) < 1e-3
    assert float(world.kl(other.reference_probs, world.reference_probs)) > 0.2


def test_apa_reaches_its_target(tmp_path):
    """In a bandit with V known the target is pi_ref exp(A / lambda), normalised where the squared errors balance."""
    world = world_of(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, -0.1, 0.3]).double())
    model = train(tmp_path, world, APA(temperature=1.0, vf_coef=1.0, num_epochs=1), steps=400)
    # at the fixed point of pi the error log pi/pi_ref - (R - V) is the same for every arm: only Z is left
    errors = model.policy[0, 0] - world.reference[0, 0] - world.oracle[0]
    assert float(errors.max() - errors.min()) < 2e-3
    assert torch.allclose(model.probabilities, world.optimum(1.0), atol=1e-3)


def test_online_dpo_fits_bradley_terry_where_it_samples(world, tmp_path):
    """Labels by their probabilities: the implicit reward becomes the oracle's, so the policy the tilted reference."""
    model = train(tmp_path, world, OnlineDPO(beta=BETA, label="soft", track_kl=False), size=2, steps=400)
    assert float(world.kl(model.probabilities, world.optimum(BETA))) < 1e-3


def test_argmax_labels_end_elsewhere(world, tmp_path):
    """The better answer always wins: no finite reward says so, and the policy runs on to the best answer."""
    model = train(tmp_path, world, OnlineDPO(beta=BETA, label="argmax"), size=2, steps=400)
    best = model.probabilities.gather(1, world.oracle.argmax(1, keepdim=True))
    assert float(world.kl(model.probabilities, world.optimum(BETA))) > 0.1 and float(best.min()) > 0.9


def test_xpo_without_its_bonus_is_online_dpo_against_the_reference(world, tmp_path):
    model = train(tmp_path, world, XPO(beta=BETA, alpha=(0.0,), label="soft", replay="latest"), steps=400)
    assert float(world.kl(model.probabilities, world.optimum(BETA))) < 1e-3


def test_xpo_without_its_bonus_is_online_dpo_step_by_step(world, tmp_path):
    """The same labels drawn of the same pairs: the same bits after fifty steps."""
    found = []
    for algorithm in (XPO(beta=BETA, alpha=(0.0,), replay="latest"), OnlineDPO(beta=BETA)):
        torch.manual_seed(3)
        model = TabularModel(world, dtype=torch.float32)
        batches = Everything(model, XPO(beta=BETA), 1, world.oracle)
        found.append(train(tmp_path, world, algorithm, steps=50, batches=batches, model=model).logits)
    assert torch.equal(*found) and float((found[0] - world.reference).abs().max()) > 0.1


def test_xpos_bonus_moves_away_from_the_reference(world, tmp_path):
    found = [
        train(tmp_path, world, XPO(beta=BETA, alpha=(alpha,), label="soft", replay="latest"), steps=400)
        for alpha in (0.0, 0.02)
    ]
    likely = [float((world.reference_probs * m.probabilities.log()).sum()) for m in found]
    assert likely[1] < likely[0] - 0.05


def test_nash_md_without_a_mixture_ends_where_nothing_beats_it(tmp_path):
    """Rewards whose differences are Bradley-Terry's: mu uniform, and pi ~ mu exp(P(. beats pi) / tau) at mixture 0."""
    tau = 0.2
    world = world_of(torch.full((3,), 1 / 3, dtype=torch.float64), torch.tensor([1.0, 0.0, -2.0]).double())
    model = train(tmp_path, world, NashMD(kl_coef=tau, mixture=0.0), steps=600)
    pi, wins = model.probabilities[0], torch.sigmoid(world.oracle[0][:, None] - world.oracle[0])
    wanted = torch.softmax((wins @ pi) / tau, 0)
    assert torch.allclose(pi, wanted, atol=2e-3)
    # Bradley-Terry's own optimum with that coefficient is another policy
    assert float((pi - world.optimum(tau)[0]).abs().max()) > 0.1


def test_sppo_step_by_step_is_multiplicative_weights(tmp_path):
    """One iteration solved: log pi - log pi_t = (P(. beats pi_t) - 1/2) / beta, up to Z."""
    world = world_of(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.5, 0.0, 1.0]).double())
    beta = 2.0
    model = train(tmp_path, world, SPPO(beta=beta, num_epochs=400), size=2, steps=400, lr=0.01)
    start = world.reference_probs[0]
    # siblings are drawn from pi_t, so an answer's mean win rate over all pairs is P(y beats pi_t)
    wins = torch.sigmoid(world.oracle[0][:, None] - world.oracle[0]) @ start
    target = torch.softmax(start.log() + wins / beta, 0)
    assert torch.allclose(model.probabilities[0], target, atol=2e-3)
