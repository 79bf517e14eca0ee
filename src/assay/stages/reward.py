"""assay reward: feedback in, a reward model out that plain transformers loads, and what it gets right."""

import math
from collections.abc import Sequence

import torch

from assay.config import RewardConfig, plain
from assay.engine.catalog import load_tokenizer, resolve_model
from assay.engine.learner import Learner
from assay.engine.load import load_reward
from assay.engine.optimizer import FlatAdamW
from assay.feedback.split import split_by_prompt
from assay.feedback.write import write_records
from assay.records import Rating
from assay.report.run import RunDirectory
from assay.rewards.contract import verify
from assay.rewards.likelihoods import Likelihood, Opinions, PerObjective
from assay.rewards.model import RewardModel
from assay.settings import InputError
from assay.stages.common import hash_of, hash_of_folder, open_run
from assay.stages.held_out import pairs_of, summarise
from assay.stages.judgements import Item, answers_of, collator, encode, objectives_of, read_judgements
from assay.stages.progress import bar, say
from assay.tokens.chat import Encoder
from assay.train.batches import Offline, Shuffled
from assay.train.loop import Training

SHOWN = ("loss", "accuracy")


def run(config: RewardConfig) -> RewardModel:
    """Train, save, prove the saved model, and print what it gets right on held-out feedback."""
    place = open_run(config.run)
    judgements = read_judgements(config.likelihood, config.data)
    train, held_out = split_by_prompt(judgements, held_out=config.held_out, seed=config.seed)
    objectives = objectives_of(train) if config.data.objectives else ()
    likelihood = of_several(config, objectives)
    source = resolve_model(config.model)
    encoder = Encoder(load_tokenizer(source))
    torch.manual_seed(config.seed)
    model = load_reward(
        source,
        dtype=config.dtype,
        lora=config.lora,
        fresh_head=True,
        num_outputs=likelihood.num_outputs,
        learned=likelihood.learned,
    )
    model.config.pad_token_id = encoder.tokenizer.pad_token_id
    optimiser = FlatAdamW(model.named_parameters(), lr=config.optimiser.lr, weight_decay=config.optimiser.weight_decay)
    learner = Learner(model, optimiser, token_budget=config.token_budget)
    reward = RewardModel(learner, encoder, name=config.model, readout=likelihood.readout)
    limit = min(reward.context, config.max_tokens or reward.context)
    items = encode(train, encoder, limit, config.data)
    kept = encode(held_out, encoder, limit, config.data) if held_out else []
    num_steps = math.ceil(config.epochs * len(items) / config.batch_size)
    several = objectives if len(objectives) > 1 else ()
    batches = Shuffled(items, config.batch_size, seed=config.seed)
    training = Training(
        likelihood,
        {"reward": learner},
        Offline({"main": (batches, collator(encoder, likelihood.columns, several))}),
        num_steps=num_steps,
        optimiser=config.optimiser,
        checkpoints=config.checkpoints,
        folder=place.checkpoints / "reward",
        identity={"config": _identity(config), "data": hash_of(train), "base": hash_of_folder(source.path)},
    )
    if training.resume():
        say(f"resumed after step {training.step} of {num_steps}")
    place.write_config(plain(config), "reward")
    place.resume_metrics(training.step + 1, stage="reward")
    kind = {"comparisons": "pairs"}.get(likelihood.data, likelihood.data)
    say(f"training on {len(items)} {kind} for {num_steps} steps; {len(kept)} {kind} of other prompts are held out")
    with bar("reward", num_steps, training.step) as progress:

        def report(metrics: dict[str, float]) -> None:
            step = int(metrics.pop("step"))
            place.append_metrics(step, metrics, stage="reward")
            progress.update(step, {name: metrics[name] for name in SHOWN if name in metrics})

        training.run(report)
    training.save()
    keep_held_out(kept, place)
    told = {"base": config.model, "base_weights": hash_of_folder(source.path)}
    reward.save(place.reward, {**told, "trained_on": hash_of(train), f"num_{kind}": len(items)})
    place.record("reward", data=hash_of(train), **{f"num_{kind}": len(items)}, num_held_out=len(kept), seed=config.seed)
    if config.verify:
        some = [(j.prompt, answer) for j, _ in (kept or items)[:8] for answer in answers_of(j)]
        say(verify(place.reward, some, trained=reward))
    if kept:
        summarise(reward, likelihood, kept, place)
    say(f"reward model: {place.reward}")
    return reward


def of_several(config: RewardConfig, objectives: Sequence[str]) -> Likelihood:
    """The chosen likelihood, for as many rewards as there are objectives or heads."""
    inner: Likelihood = config.likelihood
    if config.heads == 1 and len(objectives) < 2:
        return inner
    if config.heads > 1 and len(objectives) > 1:
        raise InputError("--heads with several --data.objectives: train an ensemble for each objective")
    if inner.num_outputs > 1:
        raise InputError(f"{inner.name} has {inner.num_outputs} numbers for one reward: no heads or objectives fit it")
    if config.heads > 1:
        return Opinions(inner=inner, num=config.heads)
    return PerObjective(inner=inner, names=tuple(objectives))


def keep_held_out(items: Sequence[Item], place: RunDirectory) -> None:
    """What the audit reads: comparisons, or all pairs of rankings; ratings as they are."""
    path = place.path / "held_out.jsonl"
    records = [j for j, _ in items] if items and isinstance(items[0][0], Rating) else [c for c, _ in pairs_of(items)]
    if records:
        write_records(path, records)
    else:
        path.unlink(missing_ok=True)  # of an earlier run


def _identity(config: RewardConfig) -> dict[str, object]:
    """The settings that shape the result; data and base are known by their content, not by where they lie."""
    told = plain(config)
    told["data"].pop("path")
    elsewhere = ("run", "model", "checkpoints", "verify", "token_budget")
    return {name: value for name, value in told.items() if name not in elsewhere}
