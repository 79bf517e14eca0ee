"""Fused norms are the norms they replace, values and gradients; other norms are left alone."""

import copy

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from assay.engine.fused import fuse_norms


def norm(dtype=torch.float32, eps=1e-5):
    module = LlamaRMSNorm(16, eps)
    with torch.no_grad():
        module.weight.copy_(torch.rand(16) + 0.5)
    return module.to(dtype)


def values_and_gradients(module, x, g):
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(g)
    return y.detach(), x.grad, module.weight.grad


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_values_and_gradients_are_the_module_s(dtype, bound):
    torch.manual_seed(0)
    plain = norm(dtype)
    fused = copy.deepcopy(plain)
    assert fuse_norms(nn_of(fused)) == 1
    x, g = torch.randn(2, 5, 16).to(dtype), torch.randn(2, 5, 16).to(dtype)
    for ours, theirs in zip(values_and_gradients(fused, x, g), values_and_gradients(plain, x, g), strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert (ours - theirs).abs().max() <= bound * theirs.abs().max()


def test_the_gradient_is_the_finite_difference():
    torch.manual_seed(0)
    module = norm().double()  # 16 weights, none of them 1
    fuse_norms(nn_of(module))
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)


def nn_of(module):
    return torch.nn.Sequential(module)


def test_a_norm_that_does_more_is_left_alone():
    assert fuse_norms(nn_of(GemmaRMSNorm(16))) == 0


def test_a_copy_of_a_fused_network_has_its_own_weights():
    network = nn_of(norm())
    fuse_norms(network)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin[0].weight.mul_(2)
    x = torch.randn(1, 2, 16)
    assert torch.allclose(twin(x), 2 * network(x))


def test_a_frozen_weight_gets_no_gradient():
    network = nn_of(norm()).requires_grad_(False)
    fuse_norms(network)
    x = torch.randn(1, 2, 16, requires_grad=True)
    network(x).sum().backward()
    assert network[0].weight.grad is None and x.grad is not None
