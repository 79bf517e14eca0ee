"""`verify` passes what plain transformers reads alike and refuses what it does not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from assay.engine.catalog import resolve_model
from assay.engine.learner import Learner
from assay.engine.load import LoRASettings, load_reward
from assay.records import reply
from assay.rewards import contract
from assay.rewards.contract import plain_outputs, verify
from assay.rewards.model import RewardModel
from assay.settings import InputError
from tiny import CONVERSATIONS, tiny_reward


@pytest.fixture
def saved(tmp_path):
    RewardModel.from_pretrained(tiny_reward(), dtype="float32").save(tmp_path)
    return tmp_path


def test_a_saved_model_is_verified_for_every_kind_of_conversation(saved):
    said = verify(saved, CONVERSATIONS)
    assert said.startswith("verified")
    assert float(said.rpartition(" ")[2]) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 3, len(CONVERSATIONS)])
def test_plain_outputs_do_not_depend_on_batch_or_side(saved, size, side):
    ours = RewardModel.from_pretrained(str(saved), dtype="float32").outputs(CONVERSATIONS)
    theirs = plain_outputs(saved, CONVERSATIONS, batch_size=size, padding_side=side)
    assert torch.allclose(theirs, ours, atol=1e-4)


def test_tools_and_template_arguments_reach_the_template(saved):
    """A template that shows tools must show them to both sides."""
    template = (
        "{% for t in tools or [] %}{{ t.name }};{% endfor %}{{ mood }}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
    )
    (saved / "chat_template.jinja").write_text(template)
    (saved / "assay.json").unlink()
    prompt = CONVERSATIONS[0][0]
    kind = type(prompt)
    more = kind(messages=prompt.messages, tools=({"name": "clock"},), template_kwargs={"mood": "merry "})
    conversations = [(prompt, reply("Blue.")), (more, reply("Blue."))]
    assert verify(saved, conversations).startswith("verified")
    plain, told = RewardModel.from_pretrained(str(saved), dtype="float32").score(conversations)
    assert abs(plain - told) > 0.01


def test_a_pad_inside_of_the_config_that_is_the_eos_is_found(saved):
    """Plain transformers would skip the end of sequence as padding: another place, another number."""
    config = saved / "config.json"
    told = json.loads(config.read_text())
    newline = RewardModel.from_pretrained(str(saved)).encode(CONVERSATIONS[0]).ids[-1]
    config.write_text(json.dumps(told | {"pad_token_id": newline}))
    with pytest.raises(InputError, match=r"differ by .* do not publish it"):
        verify(saved, CONVERSATIONS[:4])


def test_weights_that_transformers_reads_differently_are_found(saved, monkeypatch):
    ours = RewardModel.from_pretrained
    monkeypatch.setattr(RewardModel, "from_pretrained", classmethod(lambda cls, *a, **k: _moved(ours(*a, **k))))
    with pytest.raises(InputError, match="do not publish it"):
        verify(saved, CONVERSATIONS)


def test_rewards_that_are_no_numbers_are_found(saved, monkeypatch):
    """NaN is neither above nor below a bound, whoever gives it."""
    trained = _broken(RewardModel.from_pretrained(str(saved), dtype="float32"))
    with pytest.raises(InputError, match=r"differ by nan from those of the model that was trained"):
        verify(saved, CONVERSATIONS, trained=trained)
    nothing = torch.full((len(CONVERSATIONS), 1), torch.nan)
    with monkeypatch.context() as patched:
        patched.setattr(contract, "plain_outputs", lambda *a, **k: nothing)
        with pytest.raises(InputError, match="do not publish it"):
            verify(saved, CONVERSATIONS)
    trained.save(saved)
    with pytest.raises(InputError, match=f"{len(CONVERSATIONS)} of the {len(CONVERSATIONS)} numbers it gives are not"):
        verify(saved, CONVERSATIONS)


@torch.no_grad()
def _broken(reward):
    reward.learner.model.network.score.weight.fill_(torch.nan)
    return reward


@torch.no_grad()
def _moved(reward):
    reward.learner.model.network.score.weight.mul_(1.01)
    return reward


def test_a_lost_head_is_an_error(saved):
    weights = load_file(saved / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="its head is missing"):
        verify(saved, CONVERSATIONS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_saved_is_what_was_trained(tmp_path, dtype):
    """Computed in the type it was trained in, exactly: a head nudged after saving is found."""
    trained = RewardModel.from_pretrained(tiny_reward(), dtype=dtype)
    trained.save(tmp_path)
    assert verify(tmp_path, CONVERSATIONS, trained=trained).startswith("verified")
    with pytest.raises(InputError, match=r"differ by .* from those of the model that was trained"):
        verify(tmp_path, CONVERSATIONS, trained=_moved(trained))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_adapters_are_what_was_trained(tmp_path, dtype):
    model = load_reward(resolve_model(str(tiny_reward())), dtype=dtype, lora=LoRASettings(rank=4))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    whole = RewardModel.from_pretrained(tiny_reward(), dtype=dtype)
    trained = RewardModel(Learner(model), whole.encoder, name="tiny")
    trained.save(tmp_path / "good")
    assert verify(tmp_path / "good", CONVERSATIONS, trained=trained).startswith("verified")
    whole.save(tmp_path / "without")
    with pytest.raises(InputError, match="do not use it"):
        verify(tmp_path / "without", CONVERSATIONS, trained=trained)
