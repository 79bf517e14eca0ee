"""Tables trained by the learner and the loop that train language models."""

from pathlib import Path

import torch

from assay.engine.learner import Learner
from assay.engine.optimizer import FlatAdamW
from assay.lab.rollouts import every_group
from assay.lab.tabular import TabularModel, batch_of
from assay.train.loop import CheckpointSettings, OptimiserSettings, Training


class Everything:
    """All that can be sampled from the policy as it stands, weighed: training without noise.

    `change` makes another batch of it, as a reward would that pays tokens; `drawn` is what `every_group` is told of the
    algorithm's own draws.
    """

    def __init__(self, model, *, change=lambda batch: batch, streams=None, **drawn):
        self.model, self.change, self.streams, self.drawn = model, change, streams or {}, drawn

    def next(self):
        return {"main": self.change(every_group(self.model, 1, self.model.world.oracle, **self.drawn)), **self.streams}


def paired(batch):
    """The batch with a group's weight on the first row of each pair: a pair weighs the product of its rows' weights."""
    weight = batch.weight.clone()
    weight[1::2] = 1
    return batch.fill(weight=weight)


class WithText:
    """Rollouts, and as many demonstrations."""

    def __init__(self, rollouts, world, text, seed):
        self.rollouts, self.world, self.text = rollouts, world, text
        self.generator = torch.Generator().manual_seed(seed)

    def next(self):
        contexts, responses = self.world.sample(self.text, 64, self.generator)
        return {**self.rollouts.next(), "ptx": batch_of(self.world, contexts, responses, groups_of=1)}


def training(model, algorithm, batches, *, steps, lr, schedule="constant", critic=None, critic_alone=0):
    """The critic is the policy's own table unless another is given; nothing is saved."""
    learner = Learner(model, FlatAdamW(model.named_parameters(), lr=lr))
    other = learner if critic is None else Learner(critic, FlatAdamW(critic.named_parameters(), lr=lr))
    return Training(
        algorithm,
        {"policy": learner, "value": other, "reference": Learner(TabularModel(model.world))},
        batches,
        num_steps=steps,
        optimiser=OptimiserSettings(lr=lr, warmup=0.0, schedule=schedule, max_norm=1e9),
        checkpoints=CheckpointSettings(every=0),
        folder=Path("nowhere"),
        identity={},
        critic_alone=critic_alone,
    )
