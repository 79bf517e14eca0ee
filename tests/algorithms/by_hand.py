"""Answers of a few tokens, and gradients of a loss by their log-probabilities: what can be worked out by hand."""

import math

import torch

from assay.batch import ModelOutput, TokenBatch, Trunks

t = torch.tensor


class Says:
    """A learner that gives these columns, whatever it is asked about."""

    def __init__(self, **columns):
        self.columns = columns

    def forward(self, batch, reads, vocabulary=None):
        return ModelOutput(**{name: value[: batch.num_rows] for name, value in self.columns.items()})


def answers(rewards, *, width=2, lengths=None, groups=None, **columns):
    """One prompt, unless `groups` says otherwise; every answer was drawn with log-probability -1 a token."""
    num = len(rewards)
    lengths = t([width] * num if lengths is None else lengths)
    mask = torch.arange(width) < lengths[:, None]
    groups = t([0] * num if groups is None else groups)
    return TokenBatch(
        prompts=Trunks(tuple(t([1]) for _ in range(int(groups.max()) + 1))),
        ids=torch.arange(num * width).view(num, width),
        mask=mask,
        lengths=lengths,
        group=groups,
        rewards=t(rewards),
        sampler_logprobs=torch.where(mask, -1.0, 0.0),
        **columns,
    )


def ready(algorithm, batch, *, old=None, ref=None, values=None, memory=None):
    """Prepared; policy and reference are the sampler where nothing else is said."""
    same = Says(logprobs=batch.sampler_logprobs)
    policy, reference = (same if said is None else Says(logprobs=said) for said in (old, ref))
    learners = {"policy": policy, "reference": reference, "value": Says(values=values)}
    return algorithm.prepare(batch, learners, {} if memory is None else memory)


def gradient(algorithm, batch, logprobs):
    """d loss / d logprobs of the unreduced loss, summed."""
    logprobs = logprobs.clone().requires_grad_()
    values, _ = algorithm.losses()[0].fn(ModelOutput(logprobs=logprobs, entropy=torch.zeros_like(logprobs)), batch)
    (found,) = torch.autograd.grad(values.sum(), logprobs)
    return found


PLAIN = {"kl_coef": 0.0, "track_kl": False, "sampler_clip": 0.0}
TWO_STEPS = {**PLAIN, "num_epochs": 2, "scale": "none", "kl_in": "reward"}
MOVED = t([[-1.0 + math.log(1.5), -1.0 + math.log(0.9)], [-1.0, -1.0]])  # ratios 1.5 and 0.9 in the better answer
