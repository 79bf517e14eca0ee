"""The models of a policy's training: the policy, its reference, its critic, the one that says what can be drawn."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch

from assay.config import PolicyConfig
from assay.engine.catalog import ModelSource, load_tokenizer, local_path, resolve_model
from assay.engine.learner import AdapterOff, Lagging, Learner, OneAdapter
from assay.engine.load import POLICY, Critic, load_critic, load_policy
from assay.engine.model import Model
from assay.engine.optimizer import FlatAdamW
from assay.rewards.model import read_facts
from assay.settings import InputError
from assay.tokens.chat import Encoder


def with_critic(config: PolicyConfig, reward: str) -> PolicyConfig:
    """The critic's settings as the algorithm would have them, where they were not given.

    `reward` is the reward model's name; an algorithm whose critic should start there makes do with the policy where it
    is none or several.
    """
    critic, algorithm = config.critic, config.algorithm
    there = reads_values(config)
    start, alone = critic.start, critic.alone
    if there and critic.kind == "separate" and not start:
        start = getattr(algorithm, "critic_start", "policy") if is_single(reward) else "policy"
    if alone is None:
        alone = getattr(algorithm, "critic_alone", 0) if there and critic.kind != "shared" else 0
    return replace(config, critic=replace(critic, start=start, alone=alone))


def is_single(reward: str) -> bool:
    """Whether a reward's name is that of one model with one number an answer, as a critic can start from."""
    if not reward or "," in reward or ":" in reward:
        return False
    facts = read_facts(local_path(reward))
    several = facts.get("readout", {}).get("kind", "single") != "single"
    return not (several or facts.get("adapters") or facts.get("pooling"))


def load_model(source: ModelSource, encoder: Encoder, config: PolicyConfig) -> Model:
    """The policy's model, with the critic's head or adapter where it lives there."""
    kind: Critic = ""
    if reads_values(config) and config.critic.kind != "separate":
        kind = config.critic.kind
    model = load_policy(source, dtype=config.dtype, lora=config.lora, critic=kind)
    model.config.pad_token_id = encoder.tokenizer.pad_token_id
    if config.algorithm.data == "rollouts":
        model.temperature = config.sampling.temperature
    return model


def make_learners(model: Model, config: PolicyConfig, *, critic: Model | None = None) -> dict[str, Learner]:
    """By role, as the algorithm needs them; `critic` is a separate one's model."""
    learners: dict[str, Learner] = {}
    algorithm, budget = config.algorithm, config.token_budget
    frozen = None
    if algorithm.reference and not config.reference.every:
        if model.adapter is not None:
            frozen = AdapterOff(model, token_budget=budget)
        else:
            frozen = Learner(copy.deepcopy(model).requires_grad_(False), token_budget=budget)
    policy = learners["policy"] = _policy(model, config)
    if frozen is not None:
        learners["reference"] = frozen
    elif algorithm.reference:
        learners["reference"] = Lagging(policy, every=config.reference.every, share=config.reference.share)
    if sync := getattr(algorithm, "sync", 0):
        learners["mask"] = Lagging(policy, every=sync)
    if reads_values(config):
        learners["value"] = _critic(model, policy, critic, config)
    return learners


def reads_values(config: PolicyConfig) -> bool:
    """Whether a term trains a critic."""
    return any(term.learner == "value" for term in config.algorithm.losses())


def open_critic(config: PolicyConfig, reward: str, encoder: Encoder) -> Model | None:
    """The model of a separate critic; None where there is none. `reward` is the reward model's name."""
    if not reads_values(config) or config.critic.kind != "separate":
        return None
    name = {"policy": config.model, "reward": reward}.get(config.critic.start, config.critic.start)
    if config.critic.start == "reward" and not is_single(reward):
        raise InputError(
            "--critic.start reward: that needs a single reward model with one number an answer, given with --reward"
        )
    source = resolve_model(name)
    if changed := encoder.other_ids(Encoder(load_tokenizer(source))):
        raise InputError(
            f"--critic.start {name}: the {', '.join(changed)} of its tokenizer differ from the policy's, so the same "
            f"ids mean different words; start the critic from another model"
        )
    critic = load_critic(source, dtype=config.dtype, lora=config.lora)
    if config.critic.start == "reward" and getattr(config.algorithm, "reshapes", False):
        for p in critic.head("value").parameters():
            torch.nn.init.zeros_(p)  # the raw reward is on another scale than what it is made into
    return critic


def _policy(model: Model, config: PolicyConfig) -> Learner:
    budget = config.token_budget
    if not model.active:
        return Learner(model, _optimiser(model, config), token_budget=budget)
    model.use(POLICY)
    return OneAdapter(model, POLICY, _optimiser(model, config), token_budget=budget)


def _critic(model: Model, policy: Learner, critic: Model | None, config: PolicyConfig) -> Learner:
    pace = config.critic.lr / config.optimiser.lr if config.critic.lr else 1.0
    if config.critic.kind == "shared":
        return policy
    if config.critic.kind == "adapter":
        model.use("value")
        found = OneAdapter(model, "value", _optimiser(model, config), token_budget=config.token_budget, pace=pace)
        model.use(POLICY)
        return found
    assert critic is not None
    return Learner(critic, _optimiser(critic, config), token_budget=config.token_budget, pace=pace)


def _optimiser(model: Model, config: PolicyConfig) -> FlatAdamW:
    settings = config.optimiser
    return FlatAdamW(model.named_parameters(), lr=settings.lr, weight_decay=settings.weight_decay)


def check_critic(config: PolicyConfig) -> None:
    """Settings of a critic that there is none of, or that it cannot have."""
    critic = config.critic
    told: Mapping[str, bool] = {
        "start": bool(critic.start) and critic.kind != "separate",
        "lr": bool(critic.lr) and critic.kind == "shared",
        "alone": bool(critic.alone) and critic.kind == "shared",
    }
    if critic.lr and not config.optimiser.lr:
        raise InputError("--critic.lr needs an --optimiser.lr above 0, of which it is a multiple inside")
    for name, wrong in told.items():
        if wrong:
            raise InputError(f"--critic.{name}: a critic of kind {critic.kind} has none of its own; leave it out")
    if critic.kind == "adapter" and not config.lora.rank:
        raise InputError("--critic.kind adapter: give the adapters' rank with --lora.rank")
    if critic not in (type(critic)(), type(critic)(alone=0)) and not reads_values(config):
        raise InputError(f"--critic: {config.algorithm.name} has no critic; leave its settings out")
