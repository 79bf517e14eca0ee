"""A packed tree gives what each response gives alone: log-probabilities and gradients, family by family."""

import copy

import pytest
import torch
from torch import nn

from assay.batch import TokenBatch, Trunks
from assay.engine import attention
from assay.engine.model import Model
from assay.tokens.trees import Layout
from engine.families import FAMILIES, UNSHARED, tiny

BOUND = 1e-5


def make_batch(trunks, parents, responses, groups, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        return torch.randint(3, 64, (n,), generator=generator)

    lengths = torch.tensor(responses)
    width = int(lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    prompts = Trunks(tuple(draw(n) for n in trunks), tuple(parents))
    for row, group in enumerate(groups):
        if sum(len(prompts.ids[i]) for i in prompts.chain(group)) == 0:
            mask[row, 0] = False
    ids = torch.where(mask | (torch.arange(width) == 0), draw(len(responses) * width).view(-1, width), 0)
    return TokenBatch(prompts=prompts, ids=ids, mask=mask, lengths=lengths, group=torch.tensor(groups))


BATCHES = {
    "pairs": ([9, 4], [-1, -1], [6, 3, 8, 5], [0, 0, 1, 1]),
    "trunk of one token, answer of one token": ([1], [-1], [1, 4, 1], [0, 0, 0]),
    "empty trunk": ([0, 0, 7], [-1, -1, -1], [5, 4, 3], [0, 1, 2]),
    "three levels": ([6, 3, 2, 5], [-1, 0, 0, -1], [4, 7, 2, 5, 3], [1, 1, 2, 0, 3]),
}


def reference(network, head, batch, row):
    """Log-probabilities, entropy, value and reward columns of one response, computed alone by plain transformers."""
    chain = [batch.prompts.ids[i] for i in batch.prompts.chain(int(batch.group[row]))]
    length = int(batch.lengths[row])
    start = sum(len(part) for part in chain)
    ids = torch.cat([*chain, batch.ids[row, :length]])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    out = network(**inputs)
    hidden = network.base_model(**inputs).last_hidden_state[0]
    logprobs = out.logits[0].log_softmax(-1)
    first = max(start, 1)
    places = torch.arange(first, start + length)
    chosen = logprobs[places - 1].gather(1, ids[0, places, None]).squeeze(1)
    entropy = -(logprobs[places - 1].exp() * logprobs[places - 1]).sum(-1)
    values = head(hidden[places - 1]).squeeze(-1)
    rewards = head(hidden[start : start + length]).squeeze(-1)
    return first - start, chosen, entropy, values, rewards


def weights_for(batch):
    generator = torch.Generator().manual_seed(5)
    shape = batch.ids.shape
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def alone(network, head, batch):
    columns = [torch.zeros(batch.ids.shape) for _ in range(4)]
    total = torch.zeros(())
    scale = weights_for(batch)
    for row in range(batch.num_rows):
        first, *parts = reference(network, head, batch, row)
        for index, part in enumerate(parts):
            begin = 0 if index == 3 else first
            columns[index][row, begin : begin + len(part)] = part.detach()
            total = total + (scale[index][row, begin : begin + len(part)] * part).sum()
    total.backward()
    return columns


def together(model, batch):
    out = model(batch, ("logprobs", "entropy", "values", "token_rewards"))
    columns = [out.logprobs, out.entropy, out.values, out.token_rewards]
    sum((s * c).sum() for s, c in zip(weights_for(batch), columns)).backward()
    return [column.detach() for column in columns]


def test_empty_responses_and_empty_trees_change_nothing_beside_them():
    """A tree of three blocks of attention beside two without a token; a row without tokens beside one of three."""
    long = make_batch([600], [-1], [2, 3], [0, 0])
    ids = torch.cat([long.ids, torch.zeros(2, 3, dtype=torch.long)])
    lengths = torch.tensor([2, 3, 0, 0])
    nothing = torch.zeros(0, dtype=torch.long)
    beside = TokenBatch(
        prompts=Trunks((*long.prompts.ids, nothing, nothing), (-1, -1, -1)), ids=ids, lengths=lengths,
        mask=torch.arange(3) < lengths[:, None], group=torch.tensor([0, 0, 1, 2]),
    )  # fmt: skip
    found = []
    for batch in (long, beside):
        model = Model(tiny("llama"), {"reward": nn.Linear(32, 1, bias=False)})
        torch.nn.init.ones_(model.head("reward").weight)
        out = model(batch, ("logprobs", "rewards"))
        (out.logprobs.sum() + out.rewards.sum()).backward()
        found.append((out.logprobs.detach(), out.rewards.detach(), gradients(model)))
    assert torch.allclose(found[1][0][:2], found[0][0], atol=1e-6) and torch.equal(found[1][1][2:], torch.zeros(2))
    assert worst_gradient(found[1][2], found[0][2]) < BOUND


def test_a_batch_of_empty_responses_has_rewards_of_nothing():
    batch = make_batch([4, 5], [-1, -1], [1, 1], [0, 1])
    empty = TokenBatch(
        prompts=batch.prompts, ids=batch.ids[:, :0], mask=batch.mask[:, :0], lengths=torch.zeros(2, dtype=torch.long),
        group=batch.group,
    )  # fmt: skip
    model = Model(tiny("llama"), {"reward": nn.Linear(32, 1, bias=False)})
    assert model(empty, ("rewards",)).rewards.tolist() == [0.0, 0.0]


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def worst_gradient(found, expected):
    assert found.keys() >= expected.keys()
    largest = max(float(grad.abs().max()) for grad in expected.values())
    # A gradient that is zero in exact arithmetic (a key bias shifts all of a query's scores) is rounding noise in both:
    # it is held against the largest gradient of the model instead of its own.
    scale = {name: float(g.abs().max()) if g.abs().max() > 1e-5 * largest else largest for name, g in expected.items()}
    return max(float((found[name] - grad).abs().max()) / scale[name] for name, grad in expected.items())


def compare(family, batch):
    network = tiny(family)
    torch.manual_seed(3)
    head = nn.Linear(network.config.hidden_size, 1, bias=False)
    plain = copy.deepcopy(network)
    plain_head = copy.deepcopy(head)
    model = Model(network, {"value": head, "reward": head})
    expected = alone(plain, plain_head, batch)
    found = together(model, batch)
    errors = [float((f - e).abs().max()) for f, e in zip(found, expected)]
    return model, max(errors), worst_gradient(gradients(network), gradients(plain))


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_one_response_at_a_time(family, shape):
    model, error, gradient = compare(family, make_batch(*BATCHES[shape]))
    assert model.shares_prompts == (family not in UNSHARED)
    assert error < BOUND
    assert gradient < BOUND


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_long_trees_in_blocks_equal_one_response_at_a_time(family, monkeypatch):
    monkeypatch.setattr("assay.tokens.trees.WHOLE_TREE", 8)
    monkeypatch.setattr("assay.tokens.trees.QUERY_BLOCK", 4)
    monkeypatch.setattr(attention, "KEEP_PROBABILITIES", 0)
    for shape in BATCHES.values():
        _, error, gradient = compare(family, make_batch(*shape))
        assert error < BOUND
        assert gradient < BOUND


def siblings_in_sight(self, first, last, start, window):
    return torch.arange(start, last) <= torch.arange(first, last)[:, None]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in UNSHARED])
def test_a_broken_mask_shows(family, monkeypatch):
    """With siblings in sight of each other the comparison fails, so the one above can fail."""
    model = Model(tiny(family), {"value": nn.Linear(32, 1), "reward": nn.Linear(32, 1)})
    batch = make_batch(*BATCHES["pairs"])
    right = together(model, batch)
    monkeypatch.setattr(Layout, "visible", siblings_in_sight)
    wrong = together(model, batch)
    assert float((right[0] - wrong[0]).abs().max()) > 1e-2


def test_broken_family_falls_back(monkeypatch):
    """A family for which tree attention computes something else keeps its own attention and agrees."""
    monkeypatch.setattr(Layout, "visible", siblings_in_sight)
    model, error, gradient = compare("llama", make_batch(*BATCHES["pairs"]))
    assert not model.shares_prompts
    assert error < BOUND
    assert gradient < BOUND
