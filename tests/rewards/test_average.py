"""The mean of several models' weights: what it must be, what is saved, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from assay.cli import OK, WRONG_INPUT, main
from assay.rewards.average import average
from assay.rewards.contract import verify
from assay.rewards.model import RewardModel, read_facts
from assay.settings import InputError
from tiny import CONVERSATIONS, random_network, save, tokenizer


def member(place: Path, seed: int, **facts) -> str:
    folder = Path(save(random_network(LlamaForSequenceClassification, seed=seed), place / f"m{seed}"))
    RewardModel.from_pretrained(str(folder), dtype="float32").save(folder, facts)
    return str(folder)


@pytest.fixture
def two(tmp_path):
    return [member(tmp_path, seed) for seed in (1, 2)]


def weights_of(folder):
    return load_file(Path(folder) / "model.safetensors")


def test_the_average_of_equal_models_is_the_model_bit_for_bit(tmp_path):
    folder = member(tmp_path, 1)
    copies = [shutil.copytree(folder, tmp_path / f"copy{place}") for place in range(3)]
    made = average([str(copy) for copy in copies], tmp_path / "out")
    before, after = weights_of(folder), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert made.score(CONVERSATIONS) == RewardModel.from_pretrained(folder, dtype="float32").score(CONVERSATIONS)


@pytest.mark.parametrize(("told", "shares"), [(None, (0.5, 0.5)), ((3.0, 1.0), (0.75, 0.25))])
def test_every_weight_is_the_weighted_mean_and_plain_transformers_reads_it(tmp_path, two, told, shares):
    made = average(two, tmp_path / "out", told)
    one, other, found = (weights_of(folder) for folder in (*two, tmp_path / "out"))
    for name in found:
        assert torch.allclose(found[name], shares[0] * one[name] + shares[1] * other[name], atol=1e-7), name
    assert verify(tmp_path / "out", CONVERSATIONS).startswith("verified")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert plain.config.num_labels == 1 and made.readout.kind == "single"
    facts = read_facts(tmp_path / "out")
    assert facts["average_of"] == two and facts["shares"] == list(shares)


def test_models_that_tell_people_apart_are_refused(tmp_path):
    """Each has them in an order of its own."""
    two = [member(tmp_path, seed, annotators={"Ann": {"temperature": 1.0}}) for seed in (1, 2)]
    with pytest.raises(InputError, match="tell people apart"):
        average(two, tmp_path / "out")


def test_with_one_body_the_averaged_head_gives_the_mean_reward(tmp_path):
    one = member(tmp_path, 1)
    other = shutil.copytree(one, tmp_path / "other")
    state = weights_of(one)
    state["score.weight"] = torch.randn(1, 32, generator=torch.Generator().manual_seed(4))
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    rewards = [
        RewardModel.from_pretrained(str(folder), dtype="float32").outputs(CONVERSATIONS) for folder in (one, other)
    ]
    made = average([one, str(other)], tmp_path / "out", (0.3, 0.7))
    assert torch.allclose(made.outputs(CONVERSATIONS), 0.3 * rewards[0] + 0.7 * rewards[1], atol=1e-5)


def edited(folder: str, **told) -> str:
    path = Path(folder) / "assay.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
    return folder


def test_what_was_learned_beside_the_network_is_averaged_too(tmp_path, two):
    names = [edited(folder, learned={"log_nu": value}) for folder, value in zip(two, (1.0, 2.0), strict=True)]
    average(names, tmp_path / "out", (1, 3))
    assert read_facts(tmp_path / "out")["learned"] == {"log_nu": 1.75}


def wider(place: Path) -> str:
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_labels=1, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return save(LlamaForSequenceClassification(config), place)


def test_models_that_do_not_belong_together_are_refused_by_name(tmp_path, two):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=rf"{two[0]} and {tmp_path}/wide are not of one architecture: .* differs"):
        average([two[0], wider(tmp_path / "wide")], out)
    edited(two[0], base_weights="a")
    with pytest.raises(InputError, match="were trained from different weights"):
        average([two[0], edited(two[1], base_weights="b")], out)
    edited(two[1], base_weights="a", learned={"log_nu": 1.0})
    with pytest.raises(InputError, match="read their outputs differently"):
        average(two, out)
    with pytest.raises(InputError, match="at least two models"):
        average(two[:1], out)
    with pytest.raises(InputError, match="a number for each of the 2 models, none below 0"):
        average(two, out, (1, -1))
    with pytest.raises(InputError, match="a number for each of the 2 models, none below 0"):
        average(two, out, (1, float("nan")))
    with pytest.raises(InputError, match="is one of the models to average"):
        average(two, Path(two[0]))
    assert not out.exists()


def test_the_verb_averages_and_proves(tmp_path, capsys, two):
    words = ["average", "--reward", ",".join(two), "--out", str(tmp_path / "out")]
    assert main([*words, "--weights", "1", "2"]) == OK
    assert "verified" in capsys.readouterr().out
    assert read_facts(tmp_path / "out")["shares"] == pytest.approx([1 / 3, 2 / 3])
    assert main([*words, "--weights", "1"]) == WRONG_INPUT
    assert "a number for each of the 2 models" in capsys.readouterr().err
