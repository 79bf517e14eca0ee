"""assay reward: comparisons in, a reward model out that plain transformers loads, and what it gets right."""

import math
from collections.abc import Callable, Sequence

import torch

from assay.audit.statistics import proportion
from assay.batch import TokenBatch
from assay.config import DataSettings, RewardConfig, plain
from assay.engine.catalog import load_tokenizer, resolve_model
from assay.engine.learner import Learner
from assay.engine.load import load_reward
from assay.engine.optimizer import FlatAdamW
from assay.feedback.read import read_comparisons
from assay.feedback.split import split_by_prompt
from assay.feedback.write import write_records
from assay.records import Comparison
from assay.report.run import RunDirectory, write_json
from assay.rewards.contract import verify
from assay.rewards.model import RewardModel
from assay.stages.common import hash_of, hash_of_folder, keep_fitting, open_run, read
from assay.stages.progress import bar, say
from assay.stages.scoring import score_pairs
from assay.tokens.chat import Encoded, Encoder, collate
from assay.train.batches import Offline, Shuffled
from assay.train.loop import Training

Pair = tuple[Comparison, Sequence[Encoded]]


def run(config: RewardConfig) -> RewardModel:
    """Train, save, prove the saved model, and print its held-out accuracy."""
    place = open_run(config.run)
    comparisons = read(read_comparisons, config.data)
    train, held_out = split_by_prompt(comparisons, held_out=config.held_out, seed=config.seed)
    source = resolve_model(config.model)
    encoder = Encoder(load_tokenizer(source))
    torch.manual_seed(config.seed)
    model = load_reward(source, dtype=config.dtype, lora=config.lora, fresh_head=True)
    model.config.pad_token_id = encoder.tokenizer.pad_token_id
    optimiser = FlatAdamW(model.named_parameters(), lr=config.optimiser.lr, weight_decay=config.optimiser.weight_decay)
    learner = Learner(model, optimiser, token_budget=config.token_budget)
    reward = RewardModel(learner, encoder, name=config.model)
    limit = min(reward.context, config.max_tokens or reward.context)
    pairs = encode(train, encoder, limit, config.data)
    kept = encode(held_out, encoder, limit, config.data) if held_out else []
    num_steps = math.ceil(config.epochs * len(pairs) / config.batch_size)
    training = Training(
        config.algorithm,
        {"reward": learner},
        Offline({"main": (Shuffled(pairs, config.batch_size, seed=config.seed), collator(encoder))}),
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
    say(f"training on {len(pairs)} pairs for {num_steps} steps; {len(kept)} pairs of other prompts are held out")
    with bar("reward", num_steps, training.step) as progress:

        def report(metrics: dict[str, float]) -> None:
            step = int(metrics.pop("step"))
            place.append_metrics(step, metrics, stage="reward")
            progress.update(step, {name: metrics[name] for name in ("loss", "accuracy")})

        training.run(report)
    training.save()
    if kept:
        write_records(place.path / "held_out.jsonl", [comparison for comparison, _ in kept])
    else:
        (place.path / "held_out.jsonl").unlink(missing_ok=True)  # of an earlier run
    reward.save(place.reward, {"base": config.model, "trained_on": hash_of(train), "num_pairs": len(pairs)})
    place.record("reward", data=hash_of(train), num_pairs=len(pairs), num_held_out=len(kept), seed=config.seed)
    if config.verify:
        some = [(c.prompt, answer) for c, _ in (kept or pairs)[:8] for answer in (c.chosen, c.rejected)]
        say(verify(place.reward, some, trained=reward))
    if kept:
        summarise(reward, kept, place)
    say(f"reward model: {place.reward}")
    return reward


def encode(comparisons: Sequence[Comparison], encoder: Encoder, limit: int, data: DataSettings) -> list[Pair]:
    """Chosen, then rejected, of every comparison that fits."""
    items = (
        (c, [encoder.conversation(c.prompt, c.chosen), encoder.conversation(c.prompt, c.rejected)]) for c in comparisons
    )
    return keep_fitting(items, limit, data)


def collator(encoder: Encoder) -> Callable[[list[Pair]], TokenBatch]:
    """Makes a batch of pairs, with margins and soft preferences where the data has any."""

    def make(pairs: list[Pair]) -> TokenBatch:
        columns: dict[str, torch.Tensor] = {}
        preferences = [max(c.preference, 1 - c.preference) for c, _ in pairs]
        if any(p != 1 for p in preferences):
            columns["preference"] = torch.tensor(preferences)
        margins = [float(c.meta.get("margin", 0.0)) for c, _ in pairs]
        if any(margins):
            columns["margin"] = torch.tensor(margins)
        return collate([encoded for _, encoded in pairs], encoder.tokenizer.pad_token_id, **columns)

    return make


def summarise(reward: RewardModel, pairs: list[Pair], place: RunDirectory) -> None:
    """Held-out accuracy beside the two baselines that know only lengths."""
    scored = score_pairs(reward, pairs)
    longer = (scored.length_difference > 0) + 0.5 * (scored.length_difference == 0)
    rows = {
        "held-out accuracy": proportion(scored.correct[scored.labelled], scored.prompt_id[scored.labelled]),
        "always the longer": proportion(longer[scored.labelled], scored.prompt_id[scored.labelled]),
    }
    for name, found in rows.items():
        low, high = found.interval
        say(f"{name}: {found.value:.3f}  95% interval {low:.3f} to {high:.3f}  n = {int(scored.labelled.sum())}")
    facts = {name: {"value": found.value, "interval": found.interval} for name, found in rows.items()}
    write_json(place.path / "held_out.json", {"n": len(scored), **facts})


def _identity(config: RewardConfig) -> dict[str, object]:
    """The settings that shape the result; data and base are known by their content, not by where they lie."""
    told = plain(config)
    told["data"].pop("path")
    elsewhere = ("run", "model", "checkpoints", "verify", "token_budget")
    return {name: value for name, value in told.items() if name not in elsewhere}
