"""Sampling: what it says it drew is what the learner computes, family by family, whatever the neighbours do."""

import pytest
import torch

from assay.batch import TokenBatch, Trunks
from assay.engine.model import Model
from assay.engine.sample import SamplingSettings, draw, sample
from engine.families import FAMILIES, tiny

PROMPTS = [[5, 9, 11, 4, 7, 8, 3], [6], [12, 13, 14]]


def as_batch(prompts, num, samples):
    return TokenBatch(
        prompts=Trunks(tuple(torch.tensor(p) for p in prompts)),
        ids=samples.ids,
        mask=torch.arange(samples.ids.shape[1]) < samples.lengths[:, None],
        lengths=samples.lengths,
        group=torch.arange(len(prompts)).repeat_interleave(num),
    )


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["three prompts", "one prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sampler_logprobs_are_the_learners(family, prompts):
    model = Model(tiny(family))
    settings = SamplingSettings(max_tokens=12, temperature=0.7)
    samples = sample(model, prompts, 4, settings, stop=[2, 20, 21], generator=torch.Generator().manual_seed(0))
    assert 1 < int(samples.lengths.min()) or samples.stopped.any()
    model.temperature = settings.temperature
    batch = as_batch(prompts, 4, samples)
    with torch.no_grad():
        logprobs = model(batch, ("logprobs",)).logprobs
    assert float((torch.where(batch.mask, samples.logprobs, 0.0) - logprobs).abs().max()) < 2e-5


def test_stops_where_a_stop_token_is_drawn():
    model = Model(tiny("llama"))
    samples = sample(
        model, PROMPTS, 6, SamplingSettings(max_tokens=20), stop=[2, 20, 30], generator=torch.Generator().manual_seed(1)
    )
    for row, stopped in zip(samples.rows(), samples.stopped.tolist()):
        assert [token in (2, 20, 30) for token in row] == [False] * (len(row) - 1) + [stopped]
        assert stopped or len(row) == 20
    assert samples.stopped.any()


def test_an_answer_does_not_depend_on_when_its_neighbours_end():
    model = Model(tiny("llama"))
    settings = SamplingSettings(max_tokens=10)
    free = sample(model, PROMPTS, 4, settings, stop=[], generator=torch.Generator().manual_seed(3))
    cut = sample(model, PROMPTS, 4, settings, stop=range(40, 64), generator=torch.Generator().manual_seed(3))
    assert cut.stopped.any()
    for long, short in zip(free.rows(), cut.rows()):
        assert long[: len(short)] == short


def test_draw_follows_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]) * 0.7
    probabilities = torch.softmax(logits[0] / 0.7, dim=-1)
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    tokens, logprobs = draw(logits.expand(100_000, -1), uniform, 0.7)
    counts = torch.bincount(tokens, minlength=4) / 100_000
    assert torch.allclose(counts, probabilities, atol=2e-5)
    assert torch.allclose(logprobs.exp(), probabilities[tokens], atol=1e-6)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        sample(Model(tiny("llama")), [[]], 2, SamplingSettings(), stop=[2], generator=torch.Generator())
