"""Every trick of PPO-max flipped alone, in a world whose proxy can be exploited; two verdicts are the paper's.

Tables sample from the policy itself, so that the correction of the sampler is one flip that cannot do anything here.
"""

import dataclasses

import pytest
import torch

from assay.algorithms.ppo import PPOMax
from assay.engine.learner import Learner
from assay.engine.optimizer import FlatAdamW
from assay.lab.ablation import FLIPS, Trial, ablate, as_markdown, trials
from assay.lab.rollouts import TabularRollouts
from assay.lab.tabular import TabularModel
from assay.lab.world import World, num_states, tokens_of
from assay.train.loop import CheckpointSettings, OptimiserSettings, Training
from lab.training import WithText

STEPS, LENGTH = 160, 4


def flawed():
    """The truth pays for good tokens and punishes padding; the proxy pays for both. The reference writes neither."""
    tokens = tokens_of(torch.arange(3**LENGTH), 3, LENGTH)
    good, padding = (tokens == 1).sum(-1).double(), (tokens == 2).sum(-1).double()
    plain = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64).log_softmax(-1)
    reference = plain.expand(1, num_states(3, LENGTH), 3).clone()
    truth = (0.5 * good - padding)[None]
    return World(3, LENGTH, torch.ones(1, dtype=torch.float64), reference, truth), (0.5 * good + 0.6 * padding)[None]


def run(trial, seed):
    """Exact truth, proxy and KL at the end."""
    torch.manual_seed(seed)
    world, proxy = flawed()
    model, critic, reference = (TabularModel(world) for _ in range(3))
    if trial.policy_start == "uniform":  # neither policy nor reference has seen a good answer
        model.logits.data.zero_()
        reference.logits.data.zero_()
    if trial.critic_start == "reward":  # what a reward model knows: the mean reward of an answer
        critic.state_values.data.fill_(float(world.value(world.reference_probs, proxy)))
    learners = {"policy": (model, 0.05), "value": (critic, 0.05)}
    made = {name: Learner(m, FlatAdamW(m.named_parameters(), lr=lr)) for name, (m, lr) in learners.items()}
    rollouts = TabularRollouts(model, num_prompts=16, num_answers=4, rewards=proxy, seed=seed)
    training = Training(
        trial.algorithm,
        {**made, "reference": Learner(reference)},
        WithText(rollouts, world, world.reference_probs, seed) if trial.algorithm.ptx_coef else rollouts,
        num_steps=STEPS,
        optimiser=OptimiserSettings(lr=0.05, warmup=0.0, schedule="constant", max_norm=trial.max_norm),
        checkpoints=CheckpointSettings(every=0),
        folder=None,
        identity={},
        critic_alone=trial.critic_alone,
    )
    training.run(lambda _: None)
    found = model.probabilities
    return {
        "truth": float(world.value(found)),
        "proxy": float(world.value(found, proxy)),
        "KL": float(world.kl(found)),
    }


@pytest.fixture(scope="module")
def table():
    return ablate(Trial(algorithm=PPOMax(kl_coef=0.3, num_minibatches=2)), run, seeds=(0,))


def test_a_kl_helps(table):
    """Verdict of the paper's fig. 5: the key factor."""
    assert table["ppo_max"]["truth"] > table["no KL"]["truth"] + 0.3
    assert table["ppo_max"]["KL"] < 0.5 * table["no KL"]["KL"]
    assert table["ppo_max"]["proxy"] < table["no KL"]["proxy"]


def test_a_supervised_start_is_indispensable(table):
    """As in the paper's runs the start is what the policy is kept near, too."""
    assert table["ppo_max"]["truth"] > table["policy from nothing"]["truth"] + 0.1


def test_text_of_the_reference_keeps_the_policy_near_it(table):
    assert table["text beside it"]["KL"] < table["ppo_max"]["KL"] - 0.01


def test_the_table_has_every_flip(table):
    assert list(table) == ["ppo_max", *FLIPS]
    text = as_markdown(table)
    assert text.count("\n") == len(FLIPS) + 3 and "| no KL |" in text
    assert all(abs(value) < 100 for row in table.values() for value in row.values())


def test_each_trial_differs_from_the_base_by_its_flip_alone():
    base = Trial()
    for name, trial in trials(base).items():
        told = {**dataclasses.asdict(trial.algorithm), **dataclasses.asdict(trial)}
        usual = {**dataclasses.asdict(base.algorithm), **dataclasses.asdict(base)}
        differing = {key for key in told if key != "algorithm" and told[key] != usual[key]}
        assert differing == set(FLIPS.get(name, ())), name
