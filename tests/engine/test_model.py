"""What a model refuses or leaves alone rather than computing something else."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from assay.engine import load
from assay.engine.model import Model, context
from assay.engine.optimizer import FlatAdamW
from assay.settings import InputError
from engine.families import BASE, tiny


def made(family, **fields):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(BASE | fields)), dtype=torch.float32).eval()


def test_logits_made_in_an_unknown_way_are_refused():
    with pytest.raises(InputError, match="logits in a way that is not known"):
        Model(made("hyperclovax", logits_scaling=3.0))


@pytest.mark.parametrize("family", ["phimoe", "qwen2_moe"])
def test_a_window_that_attention_is_not_told_keeps_prompts_unshared(family):
    """The probe's tree is shorter than the window, so only the missing argument gives it away."""
    fields = {"sliding_window": 12, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
    assert not Model(made(family, use_sliding_window=True, max_window_layers=2, **fields)).shares_prompts


def test_a_window_longer_than_the_context_does_not_matter():
    assert Model(made("mistral", sliding_window=4096)).shares_prompts


def test_context_of_scalings_that_follow_the_longest_row():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    assert context(made("llama", max_position_embeddings=128, rope_parameters=rope).config) == 32
    assert context(made("llama").config) == 128


def test_gradient_norm_of_a_large_buffer():
    """One hundred million equal entries: the norm is 1e4 times the entry."""
    layer = nn.Linear(10_000, 10_000, bias=False)
    optimizer = FlatAdamW(layer.named_parameters(), lr=1e-3)
    optimizer.groups[0].grad.fill_(0.01)
    assert optimizer.gradient_norm() == pytest.approx(100.0, rel=1e-5)


def test_optimiser_state_that_does_not_fit_is_refused():
    optimizer = FlatAdamW(nn.Linear(3, 2).named_parameters(), lr=1e-3)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="does not fit"):
        optimizer.load_state_dict({name: value for name, value in state.items() if name != "0.exp_avg"})
    with pytest.raises(ValueError, match="does not fit"):
        optimizer.load_state_dict(state | {"0.exp_avg": torch.zeros(4)})


def test_a_missing_head_is_named():
    with pytest.raises(KeyError, match="no value head"):
        Model(tiny("llama")).head("value")


@pytest.mark.parametrize(
    ("multiplies", "bf16_seconds", "expected"),
    [(True, 0.5, torch.bfloat16), (True, 2.0, torch.float32), (False, 0.5, torch.float32)],
)
def test_models_compute_in_bf16_where_the_processor_is_faster_at_it(multiplies, bf16_seconds, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    monkeypatch.setattr(load, "_product_seconds", lambda dtype: bf16_seconds if dtype == torch.bfloat16 else 1.0)
    load._processor_prefers_bf16.cache_clear()
    try:
        assert load.compute_dtype("auto", torch.device("cpu")) == expected
        assert load.compute_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    finally:
        load._processor_prefers_bf16.cache_clear()
