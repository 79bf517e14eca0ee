"""Fitting a reward model to judgements: epochs, labels that move with it, the epoch that is kept."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from assay.batch import ModelOutput, TokenBatch
from assay.config import RewardConfig
from assay.config_files import plain
from assay.engine.checkpoint import load_checkpoint, save_checkpoint
from assay.engine.load import computed_in
from assay.engine.weights import item_weights
from assay.feedback.write import write_records
from assay.records import Comparison
from assay.report.run import RunDirectory
from assay.rewards.ids import Labels
from assay.rewards.likelihoods import Likelihood
from assay.rewards.model import RewardModel
from assay.settings import InputError
from assay.shapes import PairFloat
from assay.stages.common import hash_of
from assay.stages.judgements import Item
from assay.stages.progress import bar, say
from assay.train.batches import Batches, Offline, Shuffled
from assay.train.loop import Training
from assay.train.moving import Moving

SHOWN = ("loss", "accuracy")


@dataclass(frozen=True, slots=True)
class Fitting:
    """What one fit of a reward model needs beside its judgements; a later fit may go on from an earlier one's model."""

    config: RewardConfig
    likelihood: Likelihood
    reward: RewardModel
    collate: Callable[[list[Item]], TokenBatch]
    place: RunDirectory
    base: str  # hash of the model it starts from

    def fit(self, items: Sequence[Item], validation: Sequence[Item] = (), name: str = "reward") -> None:
        """Train, from the newest checkpoint of this name if there is one; end at the epoch of least validation loss."""
        config, learner = self.config, self.reward.learner
        assert learner.optimizer is not None
        learner.optimizer.pull_to_start(config.prior / len(items))  # of the mean loss, as the likelihood is
        num_steps = math.ceil(config.epochs * len(items) / config.batch_size)
        batches: Batches = Offline({"main": (Shuffled(items, config.batch_size, seed=config.seed), self.collate)})
        labels = None
        if config.ids.beta:
            labels = self._labels_that_move(items)
            batches = Moving(batches, labels, config.ids, self._difference)
        training = Training(
            self.likelihood,
            {"reward": learner},
            batches,
            num_steps=num_steps,
            optimiser=config.optimiser,
            checkpoints=config.checkpoints,
            folder=self.place.checkpoints / name,
            identity={"config": identity(config), "data": hash_of(j for j, _ in items), "base": self.base},
        )
        if training.resume():
            say(f"resumed after step {training.step} of {num_steps}")
        self.place.write_config(plain(config), "reward")  # not before: a run that goes on refuses other settings
        self.place.resume_metrics(training.told + 1, stage=name)
        self.place.resume_metrics(training.step, stage=f"{name} validation")
        ends = [min(num_steps, math.ceil(e * len(items) / config.batch_size)) for e in range(1, _epochs(config) + 1)]
        with bar(name, num_steps, training.step) as progress:

            def report(metrics: dict[str, float]) -> None:
                step = int(metrics.pop("step"))
                self.place.append_metrics(step, metrics, stage=name)
                progress.update(step, {key: metrics[key] for key in SHOWN if key in metrics})

            for epoch, end in enumerate(ends, 1):
                training.run(report, until=end)
                if training.step != end:
                    continue  # a resumed run is beyond it
                if labels is not None and config.ids.update == "epoch" and labels.num_moves < epoch < len(ends):
                    keys, _ = self._labels(items)
                    labels.move(keys, self._believed(items), config.ids)
                if self.likelihood.learns_between and epoch < len(ends):
                    self._learn_between(items)
                if validation:
                    self._validate(validation, end, name)
        training.save()
        if labels is not None:
            self._keep_labels(items, labels)
        if validation:
            self._take_best(name)

    def loss_on(self, items: Sequence[Item]) -> float:
        """The likelihood's mean loss, without gradient."""
        learner, batch = self.reward.learner, self.collate(list(items))
        column = "outputs" if self.reward.pooling is None else "token_outputs"
        found = learner.forward(batch, (column,)).columns
        if column == "outputs" and found[column].shape[1] == 1:
            found["rewards"] = found[column][:, 0]
        learned = {name: value.detach().cpu() for name, value in learner.model.learned.items()}
        values, _ = self.likelihood.loss(ModelOutput(parameters=learned, **found), batch)
        return float((item_weights(batch, self.likelihood.reduction) * values).sum())

    @torch.no_grad()
    def _learn_between(self, items: Sequence[Item]) -> None:
        learner, batch = self.reward.learner, self.collate(list(items))
        self.likelihood.between_epochs(
            learner.forward(batch, ("outputs",)).outputs, batch, dict(learner.model.learned.items())
        )

    def _validate(self, items: Sequence[Item], step: int, name: str) -> None:
        """Note the loss; the state with the least of them is kept."""
        stage = f"{name} validation"
        before = [row["loss"] for row in self.place.read_metrics(stage)]
        loss = self.loss_on(items)
        self.place.append_metrics(step, {"loss": loss}, stage=stage)
        say(f"validation loss after step {step}: {loss:.4f}")
        if loss < min(before, default=math.inf):
            state = self.reward.learner.state_dict()
            save_checkpoint(self.place.checkpoints / f"{name}-best", step, state, {"loss": loss}, 1)

    def _take_best(self, name: str) -> None:
        rows = self.place.read_metrics(f"{name} validation")
        best = min(rows, key=lambda row: row["loss"])
        folder = self.place.checkpoints / f"{name}-best"
        found = load_checkpoint(folder)
        if found is None or found.step != best["step"]:
            raise InputError(
                f"{folder}: the state after step {best['step']} is not there; remove {name}* and run again"
            )
        self.reward.learner.load_state_dict(found.tensors)
        say(f"kept the state after step {best['step']}, of validation loss {best['loss']:.4f}")

    def _labels(self, items: Sequence[Item]) -> tuple[torch.Tensor, PairFloat]:
        """Keys and labels of comparisons, as batches have them."""
        batch = self.collate(list(items))
        keys = batch.key[0::2]
        return keys, batch.preference if "preference" in batch else torch.ones(len(keys))

    def _labels_that_move(self, items: Sequence[Item]) -> Labels:
        """Each under its id; InputError names one that two comparisons share."""
        name, times = Counter(judgement.id for judgement, _ in items).most_common(1)[0]
        if times > 1:
            raise InputError(
                f"{self.config.data.path}: {times} comparisons have the id {name!r}: labels that move (--ids.beta) "
                f"need an id each"
            )
        return Labels(*self._labels(items))

    def _believed(self, items: Sequence[Item]) -> PairFloat:
        """Reward of each chosen response minus the rejected one's."""
        rewards = torch.tensor(self.reward.score_encoded([e for _, conversations in items for e in conversations]))
        return rewards[0::2] - rewards[1::2]

    def _difference(self, batch: TokenBatch) -> PairFloat:
        """The same of a batch."""
        learner, pooling = self.reward.learner, self.reward.pooling
        if pooling is None:
            outputs = learner.forward(batch, ("outputs",)).outputs
        else:  # of comparisons every token that was written counts
            outputs = pooling.pooled(learner.forward(batch, ("token_outputs",)).token_outputs, batch.mask)
        rewards = self.reward.readout.reward(outputs)
        return rewards[0::2] - rewards[1::2]

    def _keep_labels(self, items: Sequence[Item], labels: Labels) -> None:
        """Where every label went, as comparisons."""
        keys, _ = self._labels(items)
        moved = labels.of(keys).tolist()
        pairs = [judgement for judgement, _ in items if isinstance(judgement, Comparison)]
        rows = [
            dataclasses.replace(c, responses=(c.chosen, c.rejected), preference=label)
            for c, label in zip(pairs, moved, strict=True)
        ]
        write_records(self.place.path / "labels.jsonl", rows)


def identity(config: RewardConfig) -> dict[str, object]:
    """The settings that shape the result; data and base are known by their content, not by where they lie."""
    told = {**plain(config), "dtype": computed_in(config.dtype)}
    told["data"].pop("path")
    told["unlabelled"].pop("path")
    elsewhere = ("run", "model", "checkpoints", "verify", "token_budget")
    return {name: value for name, value in told.items() if name not in elsewhere}


def _epochs(config: RewardConfig) -> int:
    return max(1, math.ceil(config.epochs))
