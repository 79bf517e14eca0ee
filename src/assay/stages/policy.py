"""assay policy: prompts and an audited reward, or feedback alone, in; a policy out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from assay.audit.run import Audit
from assay.batch import TokenBatch
from assay.config import DataSettings, PolicyConfig
from assay.config_files import plain
from assay.engine.catalog import hash_of_folder, load_tokenizer, resolve_model
from assay.engine.export import export
from assay.engine.model import Model, context
from assay.feedback.oracles import Oracle
from assay.feedback.read import read_comparisons, read_demonstrations, read_prompts
from assay.records import Comparison, Demonstration, Prompt
from assay.report.run import RunDirectory, read_json
from assay.rewards.instructed import Instructed
from assay.rewards.judge import CRITERION, LanguageModel, check_judge, open_judge
from assay.rewards.model import Reward, RewardModel
from assay.rewards.opening import open_reward
from assay.rewards.rules import check_columns
from assay.settings import InputError
from assay.stages.common import (
    ModelOracle,
    data_columns,
    hash_of,
    hash_of_code,
    hash_of_model,
    hash_of_oracle,
    hash_of_rewards,
    keep_fitting,
    load_oracle,
    load_rewards,
    open_run,
    read,
)
from assay.stages.judgements import collator as collate_judgements
from assay.stages.keeping import Keeper
from assay.stages.learners import load_model, make_learners, open_critic, with_critic
from assay.stages.online import Rollouts, Watch
from assay.stages.policy_settings import check, check_without_model, identity
from assay.stages.progress import bar, say
from assay.stages.rewarding import Dense, Reads, Rewards, judgeable, load_rules, readable
from assay.stages.sampling import Drawn, PolicySampler
from assay.stages.turns import Episodes, environment_at
from assay.tokens.chat import Encoded, Encoder, collate
from assay.train.batches import Batches, Joined, Offline, Shuffled
from assay.train.buffer import updates
from assay.train.loop import Training

READERS: Mapping[str, Callable[..., Any]] = {
    "rollouts": read_prompts,
    "comparisons": read_comparisons,
    "demonstrations": read_demonstrations,
}
SHOWN = ("reward", "oracle", "kl", "loss", "rewards/accuracies", "length_mean")


def run(config: PolicyConfig) -> None:
    """Train with the configured algorithm and save the policy as an ordinary model folder."""
    place = open_run(config.run)
    config = with_critic(config, named_reward(config, place))
    algorithm = config.algorithm
    check(config)
    streams, weights = read_streams(config), ""
    if algorithm.data == "rollouts":
        check_prompts(config, streams["main"].records)
        weights = check_gate(config, place)
    data = {name: hash_of(stream.records) for name, stream in streams.items()}
    source = resolve_model(config.model)
    encoder = Encoder(load_tokenizer(source))
    environment = environment_at(config.environment) if config.environment else None
    watched = open_watch(config)
    rewards = open_rewards(config, place, weights, streams["main"].records) if algorithm.data == "rollouts" else None
    dense = open_dense(config, rewards, encoder) if rewards else None
    torch.manual_seed(config.seed)
    critic = open_critic(config, named_reward(config, place), encoder)
    torch.manual_seed(config.seed)  # the policy's adapters are the same whatever critic there is
    model = load_model(source, encoder, config)
    check_family(model, config)
    learners = make_learners(model, config, critic=critic)
    cut = {"top_p": algorithm.top_p} if hasattr(algorithm, "top_p") else {}
    sampler = PolicySampler(model, encoder, replace(config.sampling, **cut), learner=learners["policy"])
    batches: Batches
    episodes: Episodes | None = None
    worth: Callable[[Drawn], Sequence[float]] | None = None
    if rewards is not None:
        prompts = sampler.fitting(streams.pop("main").records, config.data, "data")
        if environment is not None:
            episodes = Episodes(sampler, environment, config.environment, config.max_turns, config.faults)
        shorter = critic is not None and context(critic.config) < sampler.context
        reads = Reads("the critic", context(critic.config), encoder) if critic and shorter else None
        for reader in dict.fromkeys([rewards.model, dense.model if dense else None, reads]):
            prompts = readable(reader, prompts, config, sampler.context, config.data)
        prompts = judgeable(rewards.judge, prompts, config)
        online = Rollouts(sampler, prompts, rewards, config, learners, dense, episodes)
        batches, worth = Joined(online, offline(config, encoder, model, streams)[0]), online.worth
        per_epoch = len(prompts)
    else:
        batches, per_epoch = offline(config, encoder, model, streams)
    num_steps = config.steps or math.ceil(config.epochs * per_epoch / config.batch_size) * updates(algorithm)
    alone = config.critic.alone or 0
    num_steps += alone
    training = Training(
        algorithm,
        learners,
        batches,
        num_steps=num_steps,
        optimiser=config.optimiser,
        checkpoints=config.checkpoints,
        folder=place.checkpoints / "policy",
        identity={
            "config": identity(config),
            "data": data,
            "base": hash_of_folder(source.path),
            "reward": rewards.identity if rewards else {},
            "algorithm": hash_of_code(algorithm.name) if ":" in algorithm.name else [],
        },
        critic_alone=alone,
    )
    keeper = Keeper(training, config.stop, f"{hash_of_oracle(config.oracle)} {hash_of(watched[0])}" if watched else "")
    if training.resume():
        say(f"resumed after step {training.step} of {num_steps}")
    keeper.start()
    place.write_config(plain(config), "policy")
    place.resume_metrics(training.told + 1 if training.step else 0, stage="policy")
    watch = None
    if watched is not None:
        prompts, oracle = watched
        prompts = sampler.fitting(prompts, config.watch, "watch")
        if isinstance(oracle, ModelOracle):
            prompts = readable(oracle.model, prompts, config, sampler.context, config.watch, "watch")
        watch = Watch(episodes or sampler, prompts, oracle, seed=config.seed + 1, worth=worth, then=config.faults.then)
        if keeper.another:
            keeper.begin_again(watch.look(), watch.scores)
    with bar("policy", num_steps, training.step) as progress:

        def report(metrics: dict[str, float]) -> None:
            step = int(metrics.pop("step"))
            if watch is not None and (step % config.watch_every == 0 or step == num_steps):
                metrics |= training.interrupts.undisturbed(watch.look)  # also before the first step
            place.append_metrics(step, metrics, stage="policy")
            progress.update(step, {name: metrics[name] for name in SHOWN if name in metrics})
            keeper.see(step, metrics, watch.scores if watch is not None else ())

        if watch is not None and training.step == 0:
            report({"step": 0})
        training.run(report)
    training.save()
    notes = keeper.finish()
    export(model, place.policy, encoder.tokenizer, learner=learners["policy"])
    place.record("policy", data=data["main"], num_steps=num_steps, seed=config.seed, base=config.model, **notes)
    say(f"policy: {place.policy}")


def open_rewards(config: PolicyConfig, place: RunDirectory, weights: str, prompts: Sequence[Prompt]) -> Rewards:
    """The reward model, of the `weights` that passed the gate, and what pays beside it from the prompts' columns."""
    named, model = named_reward(config, place), None
    rules = load_rules(config.rules, config.faults.timeout)
    for _, rule in rules.parts if rules else ():
        check_columns(rule, prompts)
    if config.judge:
        check_judge(config.judge)
    identity: dict[str, Any] = {"rules": [hash_of_code(rule) for rule in config.rules]}
    if named:
        identity["model"] = weights
        model = load_rewards(named, config)
        if isinstance(model, Instructed):
            identity["principles"] = plain(model.sampler)
    if config.stop.uncertainty and (model is None or model.readout.kind in ("single", "attributes")):
        had = f"{named} has one opinion" if named else "there is no reward model"
        raise InputError(f"--stop.uncertainty: {had}; give an ensemble, or leave the limit out")
    if config.environment:
        identity["environment"] = hash_of_code(config.environment)
    if config.dense.model:
        identity["dense"] = hash_of_model(config.dense.model)
    judge = None
    if config.judge:
        told = {"dtype": config.dtype, "token_budget": config.token_budget}
        judge = open_judge(config.judge, criterion=config.criterion or CRITERION, **told)
        known = hash_of_model(config.judge) if isinstance(judge.model, LanguageModel) else config.judge
        identity["judge"] = [known, judge.criterion]
    return Rewards(model, config.reward_weight, rules, identity, config.faults, judge)


def check_gate(config: PolicyConfig, place: RunDirectory) -> str:
    """Refuse a reward model that was not audited in this run with the weights it has now, or that failed.

    Returns what tells those weights from others, '' where rewards need no model.
    """
    reward = named_reward(config, place)
    if not reward:
        check_without_model(config)
        return ""
    weights = hash_of_rewards(reward, config)
    if config.ignore_gate:
        say(f"the gate is ignored: {reward} is optimised against, audited or not")
        return weights
    if not place.audit.exists():
        raise InputError(
            f"{reward} was not audited in {place.path}: run `assay audit --run {place.path}` first, or go on without "
            f"with --ignore_gate true"
        )
    audited = read_json(place.provenance).get("audit", {}) if place.provenance.exists() else {}
    if audited.get("weights") != weights:
        raise InputError(
            f"{place.audit} speaks of another reward than {reward} as it is now, or read by another rule: run `assay "
            f"audit --run {place.path} --reward {reward}` again with the same --reward_rule, --reward_weights and "
            f"--principles.told, or go on without with --ignore_gate true"
        )
    verdict = Audit.load(place.audit).verdict
    if not verdict.passed:
        raise InputError(
            f"the gate refuses {reward}: {'; '.join(verdict.reasons)}. Mend the reward, or go on with "
            f"--ignore_gate true"
        )
    return weights


def check_family(model: Model, config: PolicyConfig) -> None:
    """Two models' probabilities are read beside each other only where prompts can be shared."""
    beside = hasattr(config.algorithm, "top_p") or "mixture" in getattr(config.algorithm, "draws", ())
    if beside and not model.shares_prompts:
        raise InputError(
            f"{config.algorithm.name} samples from two models at once, which {type(model.network).__name__} cannot: "
            f"take another method or another model"
        )


def named_reward(config: PolicyConfig, place: RunDirectory) -> str:
    """The reward model that was asked for, or the run's own; '' where there is neither."""
    return config.reward or (str(place.reward) if place.reward.exists() else "")


def open_dense(config: PolicyConfig, rewards: Rewards, encoder: Encoder) -> Dense | None:
    """What pays tokens, where the settings say that something does."""
    settings = config.dense
    if not settings.kind:
        return None
    told = {"dtype": config.dtype, "token_budget": config.token_budget}
    model = open_reward(settings.model, **told) if settings.model else rewards.model
    if model is None:
        raise InputError("--dense.kind: there is no reward model; name one with --dense.model")
    whole = isinstance(model, RewardModel) and model.pooling is None
    if whole or type(model).token_rewards is Reward.token_rewards:  # the latter: principles are told, models several
        raise InputError(f"--dense.kind: {model.name} has, as it is used here, no rewards for tokens")
    gamma = getattr(config.algorithm, "gamma", 1.0)
    weight = 1.0 if settings.model else config.reward_weight
    return Dense(model, settings.kind, encoder, gamma=gamma, weight=weight)


class Stream(NamedTuple):
    """One source of data: what kind it is, the settings it was read with, and its records."""

    kind: str
    data: DataSettings
    records: Sequence[Any]


def read_streams(config: PolicyConfig) -> dict[str, Stream]:
    """The main data and what else the algorithm's losses read, by stream."""
    algorithm = config.algorithm
    wanted = {term.stream for term in algorithm.losses()} - {"main"}
    if extra := sorted(set(config.streams) - wanted):
        raise InputError(
            f"streams.{extra[0]}: {algorithm.name} with these settings reads no such stream (it reads "
            f"{', '.join(sorted(wanted)) or 'its main data only'})"
        )
    found = {"main": Stream(algorithm.data, config.data, read(READERS[algorithm.data], config.data))}
    for name in sorted(wanted):
        kind, data = algorithm.streams[name], config.streams.get(name, DataSettings())
        found[name] = Stream(kind, data, read(READERS[kind], data, f"streams.{name}"))
    return found


def check_prompts(config: PolicyConfig, prompts: Sequence[Prompt]) -> None:
    """What the algorithm and an environment ask of prompts, before a model is loaded."""
    data_columns(prompts, config.algorithm.columns)
    plain_text = [prompt.id for prompt in prompts if prompt.is_text]
    if config.environment and plain_text:
        raise InputError(
            f"{config.data.path}: {len(plain_text)} of {len(prompts)} prompts are plain text (the first: "
            f"{plain_text[0]}), and an --environment has conversations: give prompts as messages"
        )


def offline(config: PolicyConfig, encoder: Encoder, model: Model, streams: Mapping[str, Stream]) -> tuple[Offline, int]:
    """Batches of fixed feedback, and how many items an epoch of the main data has."""
    made = {name: _shuffled(name, stream, encoder, model, config) for name, stream in streams.items()}
    return Offline(made), len(made["main"][0].items) if "main" in made else 0


def _shuffled(
    name: str, stream: Stream, encoder: Encoder, model: Model, config: PolicyConfig
) -> tuple[Shuffled[Any], Callable[[list[Any]], TokenBatch]]:
    longest = context(model.config)
    limit = min(longest, config.max_tokens or longest)
    declared = config.algorithm.columns if name == "main" else {}

    def encoded(record: Comparison | Demonstration) -> list[Encoded]:
        answers = (record.chosen, record.rejected) if isinstance(record, Comparison) else (record.response,)
        return [encoder.completion(record.prompt, answer) for answer in answers]

    flag = "data" if name == "main" else f"streams.{name}"
    items = keep_fitting(stream.records, encoded, limit, stream.data, flag)

    def single(items: list[tuple[Any, Sequence[Encoded]]]) -> TokenBatch:
        return collate([rows for _, rows in items], encoder.tokenizer.pad_token_id)

    make = collate_judgements(encoder) if stream.kind == "comparisons" else single

    def with_columns(items: list[tuple[Any, Sequence[Encoded]]]) -> TokenBatch:
        return make(items).fill(declared=declared, **data_columns([record for record, _ in items], declared))

    data_columns([record for record, _ in items], declared)  # a missing column shows before anything is trained
    size = config.batch_size * (updates(config.algorithm) if config.algorithm.data == "rollouts" else 1)
    return Shuffled(items, size, seed=config.seed), with_columns  # a part of them for each step on a batch of rollouts


def open_watch(config: PolicyConfig) -> tuple[Sequence[Prompt], Oracle] | None:
    """What is looked at while training: held-out prompts, and the oracle that judges their answers."""
    if not config.oracle:
        return None
    prompts = read(read_prompts, config.watch, "watch")
    return prompts, load_oracle(config.oracle, config.faults, dtype=config.dtype, token_budget=config.token_budget)
