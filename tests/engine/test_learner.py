"""The gradient of a step does not depend on how it was cut into micro-batches."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from assay.algorithms import DPO, RLOO, SFT
from assay.batch import Term, TokenBatch, Trunks
from assay.engine.learner import Learner
from assay.engine.model import Model
from assay.engine.optimizer import FlatAdamW
from assay.losses.masked import masked_sum
from assay.rewards.likelihoods.comparisons import BradleyTerry
from engine.families import tiny


def batch_of(num_pairs=8, seed=0, **columns):
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return torch.randint(3, 64, (n,), generator=generator)

    rows = 2 * num_pairs
    lengths = torch.randint(1, 9, (rows,), generator=generator)
    width = int(lengths.max())
    trunks = tuple(draw(int(n)) for n in torch.randint(1, 12, (num_pairs,), generator=generator))
    return TokenBatch(
        prompts=Trunks(trunks),
        ids=draw(rows * width).view(rows, width),
        mask=torch.arange(width) < lengths[:, None],
        lengths=lengths,
        group=torch.arange(num_pairs).repeat_interleave(2),
        **columns,
    )


def learner(budget, family="llama", heads=("value", "reward")):
    torch.manual_seed(7)
    made = {name: nn.Linear(32, 1) for name in heads}
    model = Model(tiny(family), made)
    return Learner(model, FlatAdamW(model.named_parameters(), lr=1e-3), token_budget=budget)


@dataclass(frozen=True)
class ActorCritic:
    """Policy and value in one body and one forward pass: A = reward - value, squared error for the value."""

    def losses(self):
        return (
            Term("policy", self.policy, "token", reads=("logprobs", "values")),
            Term("value", self.value, "sequence", weight=0.5),
        )

    def policy(self, out, batch):
        advantages = torch.where(batch.mask, batch.rewards[:, None] - out.values.detach(), 0.0)
        return -advantages * out.logprobs, {"advantage": advantages}

    def value(self, out, batch):
        return (out.values - batch.rewards[:, None]) ** 2, {}


def test_where_nothing_counts_there_is_nothing_to_tell():
    """A loss of 0, no gradient, and no metric that would pass for a measurement."""
    worker = learner(4096)
    batch = batch_of(rewards=torch.randn(16))
    none = batch.fill(mask=torch.zeros_like(batch.mask))
    assert set(worker.forward_backward({"main": batch}, ActorCritic().losses())) == {"loss", "advantage"}
    worker.step(lr=0.0, max_norm=None)
    assert worker.forward_backward({"main": none}, ActorCritic().losses()) == {"loss": 0.0}
    assert worker.step(lr=1.0, max_norm=None) == 0


def prepared(name):
    torch.manual_seed(1)
    batch = batch_of()
    noise = torch.randn(batch.ids.shape) * 0.3
    if name == "rloo":
        algorithm = RLOO()
        batch = batch.fill(rewards=torch.randn(16), sampler_logprobs=noise - 4, ref_logprobs=noise - 4)
        batch = batch.fill(advantages=torch.where(batch.mask, torch.randn(16)[:, None], 0.0))
        return algorithm.losses(), {"main": batch}
    if name == "actor critic":
        return ActorCritic().losses(), {"main": batch.fill(rewards=torch.randn(16))}
    if name == "dpo":
        streams = {"main": batch.fill(ref_logprobs=noise - 4), "sft": batch_of(3, seed=4)}
        return DPO(sft_coef=0.3).losses(), streams
    if name == "bradley_terry":
        return BradleyTerry().losses(), {"main": batch.fill(margin=torch.rand(8), preference=torch.rand(8))}
    return SFT().losses(), {"main": batch}


def gradient(name, budget, family="llama"):
    worker = learner(budget, family)
    terms, streams = prepared(name)
    metrics = worker.forward_backward(streams, terms)
    return {k: v.clone() for k, v in worker.optimizer.gradients().items()}, metrics


@pytest.mark.parametrize("name", ["sft", "bradley_terry", "dpo", "rloo", "actor critic"])
@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_same_gradient_for_any_token_budget(name, family):
    expected, metrics = gradient(name, 10**6, family)
    largest = max(float(g.abs().max()) for g in expected.values())
    for budget in (1, 17, 40, 90):
        found, again = gradient(name, budget, family)
        worst = max(float((found[k] - g).abs().max()) for k, g in expected.items())
        assert worst < 1e-5 * largest
        assert again == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_accumulating_eight_parts_equals_one_batch():
    """Eight micro-batches of one pair give the gradient of one batch of eight pairs."""
    whole, _ = gradient("bradley_terry", 10**6)
    worker = learner(1)  # a budget that no two pairs share
    terms, streams = prepared("bradley_terry")
    calls = []
    worker.model.register_forward_hook(lambda *_: calls.append(1))
    worker.forward_backward(streams, terms)
    assert len(calls) == 8
    found = worker.optimizer.gradients()
    largest = max(float(g.abs().max()) for g in whole.values())
    assert max(float((found[k] - g).abs().max()) for k, g in whole.items()) < 1e-5 * largest


def test_two_streams_add_up():
    terms, streams = prepared("dpo")
    alone = learner(10**6)
    alone.forward_backward(streams, terms[:1])
    alone.forward_backward(streams, terms[1:])
    both, _ = gradient("dpo", 10**6)
    for name, grad in alone.optimizer.gradients().items():
        assert torch.allclose(grad, both[name], atol=1e-6)


def test_policy_and_value_share_one_forward():
    worker = learner(10**6)
    terms, streams = prepared("actor critic")
    calls = []
    worker.model.register_forward_hook(lambda *_: calls.append(1))
    worker.forward_backward(streams, terms)
    assert len(calls) == 1
    assert all(float(g.abs().max()) > 0 for n, g in worker.optimizer.gradients().items() if "value" in n)


def test_garbage_where_masked_changes_nothing():
    terms, streams = prepared("rloo")
    expected, _ = gradient("rloo", 40)
    batch = streams["main"]
    holes = ~batch.mask
    dirty = batch.fill(
        ids=torch.where(holes, 63, batch.ids),
        ref_logprobs=batch.ref_logprobs.masked_fill(holes, float("nan")),
        advantages=batch.advantages.masked_fill(holes, float("nan")),
    )
    worker = learner(40)
    metrics = worker.forward_backward({"main": dirty}, terms)
    assert all(value == value for value in metrics.values())
    for name, grad in worker.optimizer.gradients().items():
        assert torch.allclose(grad, expected[name], atol=1e-7)


def test_a_weight_of_zero_removes_a_row():
    terms, streams = prepared("rloo")
    batch = streams["main"]
    weight = torch.ones(16)
    weight[3] = weight[8] = 0
    some, other = learner(50), learner(50)
    some.forward_backward({"main": batch.fill(weight=weight)}, terms)
    other.forward_backward({"main": batch.select(torch.tensor([r for r in range(16) if r not in (3, 8)]))}, terms)
    for name, grad in some.optimizer.gradients().items():
        assert torch.allclose(grad, other.optimizer.gradients()[name], atol=1e-6)


def test_nan_loss_updates_nothing():
    worker = learner(10**6)
    before = copy.deepcopy(worker.model.state_dict())
    terms, streams = prepared("rloo")
    bad = streams["main"].advantages.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan"):
        worker.forward_backward({"main": streams["main"].fill(advantages=bad)}, terms)
    assert all(torch.equal(value, before[name]) for name, value in worker.model.state_dict().items())


def test_optimizer_refuses_a_gradient_that_is_not_finite():
    worker = learner(10**6)
    before = copy.deepcopy(worker.model.state_dict())
    next(iter(worker.optimizer.gradients().values()))[0] = float("inf")
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        worker.step(lr=1e-3, max_norm=1.0)
    assert all(torch.equal(value, before[name]) for name, value in worker.model.state_dict().items())


def test_bf16_compute_keeps_fp32_masters():
    """Updates far below bf16's resolution add up in the masters."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False).bfloat16()
    start = layer.weight.detach().float().clone()
    optimizer = FlatAdamW(layer.named_parameters(), lr=1e-5)
    for _ in range(4):
        layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(lr=1e-5, max_norm=None)
    assert torch.allclose(start - optimizer.masters()["weight"], torch.full((4, 4), 4e-5), atol=1e-7)


def test_flat_adamw_equals_torch():
    torch.manual_seed(0)
    ours = nn.Linear(5, 3)
    theirs = copy.deepcopy(ours)
    flat = FlatAdamW(ours.named_parameters(), lr=1e-2, weight_decay=0.1)
    decayed, other = {"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}
    adam = torch.optim.AdamW([decayed, other], lr=1e-2)
    for _ in range(5):
        x = torch.randn(7, 5)
        for module in (ours, theirs):
            (module(x) ** 2).mean().backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        assert flat.step(lr=1e-2, max_norm=0.1) == pytest.approx(float(norm), rel=1e-5)
        adam.step()
        adam.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


def test_a_prior_ends_where_ridge_around_the_start_does():
    """The minimum of mean squared error + strength/2 |w - start|^2, in closed form."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, size, generator=generator, dtype=torch.float64) for size in (5, 1))
    layer = torch.nn.Linear(5, 1, bias=False)
    layer.weight.data.copy_(torch.randn(1, 5, generator=generator))
    start, strength = layer.weight.data.double().clone(), 0.7
    optimizer = FlatAdamW(layer.named_parameters(), lr=0.01)
    optimizer.pull_to_start(strength)
    for step in range(4000):
        ((layer(x.float()) - y.float()) ** 2 / 2).mean().backward()
        optimizer.step(lr=0.01 * (1 - step / 4000), max_norm=None)
    wanted = torch.linalg.solve(x.T @ x / 64 + strength * torch.eye(5), x.T @ y / 64 + strength * start.T).T
    assert torch.allclose(layer.weight.data.double(), wanted, atol=1e-4)
    assert (wanted - start).abs().max() > 0.1 and not torch.allclose(wanted, torch.linalg.lstsq(x, y).solution.T)


def test_learned_numbers_have_no_prior():
    module = torch.nn.ParameterDict({"weight": torch.nn.Parameter(torch.ones(2, 2))})
    module["learned"] = torch.nn.ParameterDict({"threshold": torch.nn.Parameter(torch.ones(1))})
    optimizer = FlatAdamW(module.named_parameters(), lr=0.1)
    optimizer.pull_to_start(1e6)
    for _ in range(5):
        (module["weight"].sum() + module["learned"]["threshold"].sum()).backward()
        optimizer.step(lr=0.1, max_norm=None)
    assert module["learned"]["threshold"].item() < -10  # at its own pace


def test_forward_gathers_what_micro_batches_compute():
    worker = learner(30)
    batch = batch_of()
    found = worker.forward(batch, ("logprobs", "values", "rewards"))
    with torch.no_grad():
        whole = worker.model(batch, ("logprobs", "values", "rewards"))
    for name in ("logprobs", "values", "rewards"):
        assert torch.allclose(getattr(found, name), getattr(whole, name), atol=1e-5)


def test_vocabulary_functions_run_forward_and_backward():
    """A function of the logits gets the same gradient as the built-in log-probabilities."""

    def chosen(logits, columns):
        return logits.log_softmax(-1).gather(1, columns["targets"][:, None]).squeeze(1)

    def loss(out, batch):
        return -masked_sum(out.vocabulary["chosen"], batch.mask), {}

    def plain(out, batch):
        return -masked_sum(out.logprobs, batch.mask), {}

    batch = batch_of()
    ours, theirs = learner(60), learner(60)
    ours.forward_backward({"main": batch}, (Term("policy", loss, "response", vocabulary={"chosen": chosen}),))
    theirs.forward_backward({"main": batch}, (Term("policy", plain, "response"),))
    for name, grad in ours.optimizer.gradients().items():
        assert torch.allclose(grad, theirs.optimizer.gradients()[name], atol=1e-5)


def test_gradients_that_come_late_or_never_or_as_rows_are_what_autograd_says():
    """bf16 weights: the first gradient is copied, others are added, what had none is zero; embeddings bring rows."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(10, 4, sparse=True, dtype=torch.bfloat16)
    layer, idle = (torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16) for _ in range(2))
    model = torch.nn.ModuleDict({"table": table, "layer": layer, "idle": idle})
    optimizer = FlatAdamW(model.named_parameters(), lr=1e-3)
    for _ in range(2):  # what an earlier step left must not be there
        parts = [torch.tensor([1, 3, 3]), torch.tensor([3, 7])]
        expected = {name: torch.zeros_like(p).float() for name, p in model.named_parameters()}
        for ids in parts:
            leaf = {name: p.detach().float().requires_grad_() for name, p in model.named_parameters()}
            hidden = torch.nn.functional.embedding(ids, leaf["table.weight"])
            (hidden.bfloat16() @ leaf["layer.weight"].bfloat16().T).float().square().sum().backward()
            for name, value in leaf.items():
                expected[name] += 0 if value.grad is None else value.grad
            layer(table(ids)).float().square().sum().backward()
        found = optimizer.gradients()
        assert all(torch.allclose(found[name], expected[name], rtol=0.02, atol=0.02) for name in expected)
        assert (found["idle.weight"] == 0).all() and (found["table.weight"][[0, 2, 9]] == 0).all()
        assert found["table.weight"][[1, 3, 7]].abs().min() > 0
        optimizer.step(lr=1e-3, max_norm=1.0)


def test_what_others_wrote_is_read_at_temperature_1():
    """The temperature is that of what is sampled, the main stream; a further stream's likelihood is the model's own."""
    warm, plain = learner(4096, heads=()), learner(4096, heads=())
    warm.model.temperature = 0.5
    terms = SFT().losses()
    beside = tuple(replace(term, stream="texts") for term in terms)
    batch = batch_of()
    (found,) = (warm.forward_backward({"texts": batch}, beside)["texts/nll"],)
    assert found == plain.forward_backward({"main": batch}, terms)["nll"]
    assert warm.forward_backward({"main": batch}, terms)["nll"] != found and warm.model.temperature == 0.5
