"""What is exported is an ordinary folder: plain transformers gives the trained numbers."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from assay.algorithms import SFT
from assay.engine.catalog import resolve_model
from assay.engine.export import export
from assay.engine.learner import Learner, OneAdapter
from assay.engine.load import POLICY, LoRASettings, load_policy, load_reward
from assay.engine.optimizer import FlatAdamW
from assay.records import reply
from assay.rewards.likelihoods.comparisons import BradleyTerry
from assay.tokens.chat import Encoder, collate
from tiny import CONVERSATIONS, PROMPTS, tiny_model, tiny_reward, tokenizer

ADAPTERS = {"every weight": LoRASettings(), "LoRA": LoRASettings(rank=4)}
each_way = pytest.mark.parametrize("lora", ADAPTERS.values(), ids=ADAPTERS)
each_type = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def encoder() -> Encoder:
    return Encoder(tokenizer())


def trained(model, algorithm, steps=3) -> Learner:
    """After a few large steps, so that what was not exported would show."""
    words = encoder()
    role = algorithm.losses()[0].learner
    learner = Learner(model, FlatAdamW(model.named_parameters(), lr=0.02), token_budget=200)
    answers = (reply("Yes."), reply("No, never, not at all."))
    batch = collate([[words.completion(prompt, a) for a in answers] for prompt in PROMPTS[:3]], 0)
    for _ in range(steps):
        learner.forward_backward({"main": batch}, [t for t in algorithm.losses() if t.learner == role])
        learner.step(lr=0.02, max_norm=1.0)
    return learner


def fp32_rewards(learner) -> list[float]:
    """The trained masters' rewards, in fp32, by our own model."""
    batch = collate([[encoder().conversation(*c)] for c in CONVERSATIONS], 0)
    model = copy.deepcopy(learner.model).float()
    with torch.no_grad():
        masters = learner.optimizer.masters()
        for name, p in model.named_parameters():
            if name in masters:
                p.copy_(masters[name])
    return Learner(model).forward(batch, ("rewards",)).rewards.tolist()


@torch.no_grad()
def plain_scores(folder) -> list[float]:
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for conversation in CONVERSATIONS:
        encoded = encoder().conversation(*conversation)
        found.append(network(input_ids=torch.tensor([encoded.trunk + encoded.ids])).logits.item())
    return found


@each_way
@each_type
def test_a_trained_reward_reloads_with_its_rewards(lora, dtype, tmp_path):
    torch.manual_seed(0)
    model = load_reward(resolve_model(tiny_model()), dtype=dtype, lora=lora, fresh_head=True)
    before = plain_scores_of(model, tmp_path / "before")
    learner = trained(model, BradleyTerry())
    export(model, tmp_path, tokenizer(), learner=learner)
    expected = fp32_rewards(learner)
    assert max(abs(a - b) for a, b in zip(expected, before)) > 0.05  # training moved them
    assert plain_scores(tmp_path) == pytest.approx(expected, abs=1e-4)


def plain_scores_of(model, folder) -> list[float]:
    export(model, folder, tokenizer())
    return plain_scores(folder)


@each_way
@each_type
@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_policy_reloads_with_its_logits(lora, dtype, tied, tmp_path):
    torch.manual_seed(0)
    model = load_policy(resolve_model(tiny_model(tied=tied)), dtype=dtype, lora=lora)
    learner = trained(model, SFT())
    export(model, tmp_path, tokenizer(), learner=learner)
    network, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (network.lm_head.weight is network.model.embed_tokens.weight) is tied
    ids = torch.tensor([encoder().prompt(PROMPTS[0])])
    batch = collate([[encoder().completion(PROMPTS[0], reply("Yes, two of them."))]], 0)
    exact = copy.deepcopy(model).float()
    with torch.no_grad():
        masters = learner.optimizer.masters()
        for name, p in exact.named_parameters():
            if name in masters:
                p.copy_(masters[name])
        ours = exact(batch, ("logprobs",)).logprobs[0]
        whole = torch.cat([ids[0], batch.ids[0]])[None]
        theirs = network(whole).logits[0].log_softmax(-1)
    count = int(batch.lengths[0])
    places = torch.arange(len(ids[0]) - 1, len(ids[0]) - 1 + count)
    assert torch.allclose(theirs[places, batch.ids[0]], ours, atol=1e-4)


def test_the_policys_adapter_is_exported_whichever_was_used_last(tmp_path):
    torch.manual_seed(0)
    model = load_policy(resolve_model(tiny_model()), dtype="float32", lora=LoRASettings(rank=4), critic="adapter")
    policy = OneAdapter(model, POLICY, FlatAdamW(model.named_parameters(), lr=0.02), token_budget=200)
    for name, p in model.named_parameters(remove_duplicate=False):
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3 if POLICY in name else 3.0)
    policy.optimizer.restore({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
    batch = collate([[encoder().completion(PROMPTS[0], reply("Yes, two of them."))]], 0)
    expected = policy.forward(batch, ("logprobs",)).logprobs
    model.use("value")
    export(model, tmp_path, tokenizer(), learner=policy)
    plain = Learner(load_policy(resolve_model(str(tmp_path)), dtype="float32"))
    assert torch.allclose(plain.forward(batch, ("logprobs",)).logprobs, expected, atol=1e-4)
    model.use("value")
    assert not torch.allclose(Learner(model).forward(batch, ("logprobs",)).logprobs, expected, atol=0.1)


@each_way
def test_the_config_says_what_transformers_needs_and_nothing_of_ours(lora, tmp_path):
    model = load_reward(resolve_model(tiny_model()), dtype="float32", lora=lora, fresh_head=True)
    export(model, tmp_path, tokenizer())
    told = (tmp_path / "config.json").read_text()
    config = json.loads(told)
    assert "assay" not in told and config.get("_attn_implementation") is None
    network = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert network.config.num_labels == 1
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["pad_token_id"] == tokenizer().pad_token_id != config["eos_token_id"]
    assert config["dtype"] == "float32"
    assert not list(tmp_path.glob("adapter*")), "an adapter is merged, not beside the weights"
    assert model.config._attn_implementation == "assay_tree", "the trained model goes on as it was"


def test_pad_that_is_eos_is_refused(tmp_path):
    words = copy.deepcopy(tokenizer())
    words.pad_token = words.eos_token
    with pytest.raises(ValueError, match="pad token must differ"):
        export(load_reward(resolve_model(tiny_reward())), tmp_path, words)
    assert not list(tmp_path.iterdir())
