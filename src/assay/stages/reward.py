"""assay reward: feedback in, a reward model out that plain transformers loads, and what it gets right."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from assay.config import RewardConfig
from assay.engine.catalog import ModelSource, load_tokenizer, resolve_model
from assay.engine.learner import Learner, OneAdapter
from assay.engine.load import adapter_names, context_of, load_reward
from assay.engine.optimizer import FlatAdamW
from assay.feedback.graph import describe_gaps
from assay.feedback.split import split_by_prompt
from assay.feedback.write import write_records
from assay.records import Judged, Rating, SpanLabels
from assay.report.run import RunDirectory
from assay.rewards.adapters import AdapterEnsemble
from assay.rewards.contract import Trained, verify
from assay.rewards.likelihoods import Likelihood, Opinions, PerObjective, WithLanguage
from assay.rewards.likelihoods.several import bootstrap_weights
from assay.rewards.model import RewardModel
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.stages.common import hash_of, hash_of_folder, open_run
from assay.stages.evolving import find_pool, label_itself
from assay.stages.fitting import Fitting
from assay.stages.held_out import pairs_of, summarise
from assay.stages.judgements import Item, answers_of, collator, encode, key_of, objectives_of, read_judgements
from assay.stages.progress import say
from assay.tokens.chat import Encoder

MAX_LISTED = 20  # annotators


def run(config: RewardConfig) -> Trained:
    """Train, save, prove the saved model, and print what it gets right on held-out feedback."""
    place = open_run(config.run)
    check_settings(config)
    source = resolve_model(config.model)
    encoder = Encoder(load_tokenizer(source))
    usable = read_usable(config, source, encoder)
    check_margins(config, [judgement for judgement, _ in usable])
    train, held_out = split_by_prompt([j for j, _ in usable], held_out=config.held_out, seed=config.seed)
    known = config.likelihood.knowing(train)
    train, validation = split_by_prompt(train, held_out=config.validation, seed=config.seed + 1, called="validation")
    train, pool = find_pool(train, config)
    objectives = objectives_of(train) if config.data.objectives else ()
    likelihood = of_several(config, known, objectives)
    models = new_models(config, likelihood, source, encoder)
    reward = models[0]
    encoded = {id(judgement): answers for judgement, answers in usable}
    items, tested, checked = ([(j, encoded[id(j)]) for j in part] for part in (train, held_out, validation))
    collate = collator(encoder, likelihood, objectives if len(objectives) > 1 else ())
    check_heads(config.heads, items)
    fitting = Fitting(config, likelihood, reward, collate, place, hash_of_folder(source.path))
    kind = {"comparisons": "pairs"}.get(likelihood.data, likelihood.data)
    others = f", {len(checked)} choose the epoch" if checked else ""
    say(f"training on {len(items)} {kind}; {len(tested)} {kind} of other prompts are held out{others}")
    if gaps := describe_gaps([judgement for judgement, _ in items], likelihood.data):
        say(gaps)
    if len(models) > 1:
        reward = fit_adapters(fitting, models, items, checked)
    else:
        fitting.fit(items, checked)
    keep_held_out(tested, place)
    if pool:
        reward = label_itself(fitting, items, pool, tested, lambda: new_models(config, likelihood, source, encoder)[0])
    facts = {"base": config.model, "base_weights": fitting.base, f"num_{kind}": len(items)}
    finish(fitting, reward, items, tested, {**facts, "trained_on": hash_of(train)})
    return reward


def read_usable(config: RewardConfig, source: ModelSource, encoder: Encoder) -> list[Item]:
    """The feedback that can be read and fits the model, its answers encoded; what does not is told before it loads."""
    room = context_of(source)
    judgements = read_judgements(config.likelihood, config.data)
    limit = min(room, config.max_tokens or room)
    return encode(judgements, lambda two: encoder.conversation(*two), limit, config.data)


def check_margins(config: RewardConfig, judgements: Sequence[Judged]) -> None:
    """InputError where labels would move to beliefs without the margins that they were judged with."""
    num = sum(bool(judgement.meta.get("margin")) for judgement in judgements)
    if num and config.ids.beta:
        raise InputError(
            f"{config.data.path}: {num} comparisons have a margin, which the belief that --ids.beta moves their labels "
            f"to does not know; leave out the column or --ids.beta"
        )
    if num and not config.likelihood.reads_margins:
        say(f"{num} margins are not read: {config.likelihood.name} has no place for them")


def check_heads(num: int, items: Sequence[Item]) -> None:
    """InputError where a head of several has no judgement in its bootstrap: it would keep its random weights."""
    keys = torch.tensor([key_of(judgement) for judgement, _ in items])
    for head in range(num if num > 1 else 0):
        if not bootstrap_weights(keys, head).any():
            raise InputError(f"--heads: head {head} drew none of {len(items)} judgements for itself: give more")


def fit_adapters(
    fitting: Fitting, models: Sequence[RewardModel], items: Sequence[Item], validation: Sequence[Item]
) -> AdapterEnsemble:
    """Each adapter and its head on a bootstrap of its own, one after the other."""
    keys = torch.tensor([key_of(judgement) for judgement, _ in items])
    for index, member in enumerate(models):
        times = bootstrap_weights(keys, index).tolist()
        drawn = [item for item, num in zip(items, times, strict=True) for _ in range(num)]
        if not drawn:
            raise InputError(f"--adapters: adapter {index} drew none of {len(items)} judgements for itself: give more")
        replace(fitting, reward=member).fit(drawn, validation, name=f"reward-adapter-{index}")
    return AdapterEnsemble(models, Readout(kind="ensemble"), name=str(fitting.place.reward))


def finish(
    fitting: Fitting, reward: Trained, items: Sequence[Item], tested: Sequence[Item], facts: Mapping[str, Any]
) -> None:
    """Save the model, prove that what was saved is it, and tell what it gets right on held-out feedback."""
    config, place = fitting.config, fitting.place
    learned = {name: value.detach().cpu() for name, value in reward.learner.model.learned.items()}
    told = fitting.likelihood.told(learned)
    reward.save(place.reward, {**facts, **({"annotators": told} if told else {})})
    place.record("reward", **facts, data=facts["trained_on"], num_held_out=len(tested), seed=config.seed)
    if config.verify:
        some = [(j.prompt, answer) for j, _ in (tested or items)[:8] for answer in answers_of(j)]
        say(verify(place.reward, some, trained=reward))
    say_annotators(told)
    if tested:
        summarise(reward, fitting.likelihood, tested, place, told)
    say(f"reward model: {place.reward}")


def new_models(
    config: RewardConfig, likelihood: Likelihood, source: ModelSource, encoder: Encoder
) -> list[RewardModel]:
    """The base with a fresh head and its optimiser; one for each adapter, all on one body."""
    torch.manual_seed(config.seed)
    model = load_reward(
        source,
        dtype=config.dtype,
        lora=config.lora,
        fresh_head=True,
        num_outputs=likelihood.num_outputs,
        learned=likelihood.learned,
        language=config.language_coef > 0,
        at_tokens=likelihood.pooling is not None,
        num_adapters=config.adapters,
    )
    model.config.pad_token_id = encoder.tokenizer.pad_token_id
    if config.ids.beta:  # labels move towards the reward that training starts from: let it have no opinion
        torch.nn.init.zeros_(model.head("reward").weight)

    def optimiser() -> FlatAdamW:
        settings = config.optimiser
        return FlatAdamW(model.named_parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    if config.adapters > 1:
        learners: list[Learner] = []
        for adapter in adapter_names(config.adapters):
            model.use(adapter)
            learners.append(OneAdapter(model, adapter, optimiser(), token_budget=config.token_budget))
    else:
        learners = [Learner(model, optimiser(), token_budget=config.token_budget)]
    told = {"readout": likelihood.readout, "pooling": likelihood.pooling}
    return [RewardModel(learner, encoder, name=config.model, **told) for learner in learners]


def say_annotators(told: Mapping[str, Mapping[str, float]]) -> None:
    """A line for each of the first annotators; assay.json has them all."""
    for name, numbers in list(told.items())[:MAX_LISTED]:
        say(f"annotator {name}: " + "  ".join(f"{what} {value:.3f}" for what, value in numbers.items()))
    if len(told) > MAX_LISTED:
        say(f"{len(told) - MAX_LISTED} more annotators: see assay.json")


def check_settings(config: RewardConfig) -> None:
    """Raises InputError for settings that do not go together."""
    settings = {
        "ids.beta": config.ids.beta > 0,
        "language_coef": config.language_coef > 0,
        "labelled": config.labelled < 1,
        "unlabelled.path": bool(config.unlabelled.path),
    }
    named = [name for name, given in settings.items() if given]
    if named and config.likelihood.data != "comparisons":
        raise InputError(f"--{named[0]} needs comparisons, and {config.likelihood.name} reads {config.likelihood.data}")
    by_belief = next((name for name in named if name != "language_coef"), "")
    if by_belief and not config.likelihood.gives_log_odds:
        raise InputError(
            f"--{by_belief} takes a difference of rewards for log-odds, which it is not for {config.likelihood.name}: "
            f"use --likelihood bradley_terry"
        )
    if config.ids.beta and getattr(config.likelihood, "label_smoothing", 0):
        raise InputError(
            "--ids.beta with --likelihood.label_smoothing: smoothed labels would pull every belief, and with it the "
            "labels, to a half; leave one of them out"
        )
    if by_belief and len(config.data.objectives) > 1:
        raise InputError(f"--{by_belief} with several --data.objectives: train a model for each objective")
    if config.likelihood.learns_between and config.epochs < 2:
        raise InputError(f"{config.likelihood.name} learns between epochs: give --epochs 3 or more")
    if config.adapters > 1:
        if not config.lora.rank:
            raise InputError("--adapters needs --lora.rank, the rank that each adapter has")
        others = ["heads"] if config.heads > 1 else [name for name in named if name != "language_coef"]
        if others:
            raise InputError(f"--adapters with --{others[0]}: an ensemble is of adapters alone; leave one of them out")
    if config.validation and ("labelled" in named or "unlabelled.path" in named):
        raise InputError(f"--validation with --{named[-1]}: a loop has no epoch to choose; leave --validation out")


def of_several(config: RewardConfig, found: Likelihood, objectives: Sequence[str]) -> Likelihood:
    """The likelihood for as many rewards as there are objectives or heads, with a language loss if asked."""
    opinions = max(config.heads, config.adapters)
    several = opinions > 1 or len(objectives) > 1
    if opinions > 1 and len(objectives) > 1:
        raise InputError("an ensemble with several --data.objectives: train an ensemble for each objective")
    if config.adapters > 1 and found.learned:
        raise InputError(f"--adapters with {found.name}: it learns {', '.join(found.learned)}, and adapters share none")
    if several and (found.num_outputs > 1 or found.pooling is not None):
        raise InputError(f"{found.name} has {found.num_outputs} numbers for one reward: no heads or objectives fit it")
    if config.heads > 1:
        found = Opinions(inner=found, num=config.heads)
    elif len(objectives) > 1:
        found = PerObjective(inner=found, names=tuple(objectives))
    return WithLanguage(inner=found, coef=config.language_coef) if config.language_coef else found


def keep_held_out(items: Sequence[Item], place: RunDirectory) -> None:
    """What the audit reads: comparisons, or all pairs of rankings; ratings as they are."""
    path = place.path / "held_out.jsonl"
    records = (
        [j for j, _ in items]
        if items and isinstance(items[0][0], Rating | SpanLabels)
        else [c for c, _ in pairs_of(items)]
    )
    if records:
        write_records(path, records)
    else:
        path.unlink(missing_ok=True)  # of an earlier run
