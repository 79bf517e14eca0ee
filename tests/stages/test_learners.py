"""What a critic starts from."""

import json

import pytest

from assay.cli import OK, main
from assay.report.run import RunDirectory
from assay.stages.learners import is_single
from tiny import pairs, prompts, tiny_model, tiny_reward, write


def test_one_reward_model_is_one_to_start_from(tmp_path):
    assert is_single(tiny_reward())
    assert is_single("owner/name")  # of the hub: what it is shows when it is opened
    assert not any(map(is_single, ("", f"{tiny_reward()},{tiny_reward()}", "implicit:a:b")))


@pytest.mark.parametrize(
    "facts",
    [{"readout": {"kind": "mean"}}, {"readout": {"kind": "attributes"}}, {"adapters": 2}, {"pooling": {"how": "sum"}}],
    ids=lambda facts: next(iter(facts)),
)
def test_one_of_several_numbers_is_none(tmp_path, facts):
    """An ensemble of heads or adapters, attributes, a process reward model."""
    (tmp_path / "assay.json").write_text(json.dumps(facts))
    assert not is_single(str(tmp_path))


@pytest.mark.parametrize(
    "several", [["--heads", "2"], ["--adapters", "2", "--lora.rank", "2"]], ids=["heads", "adapters"]
)
def test_ppo_max_makes_do_with_the_policy_beside_an_ensemble(several, tmp_path):
    """And says what is missing where it is told to begin at the reward model."""
    common = ["--run", str(tmp_path), "--model", tiny_model(), "--dtype", "float32", "--batch_size", "4"]
    data, asked = write(tmp_path / "pairs.jsonl", pairs(12)), write(tmp_path / "prompts.jsonl", prompts(8))
    assert main(["reward", *common, "--data.path", data, *several]) == OK
    words = ["policy", *common, "--data.path", asked, "--algorithm.name", "ppo_max", "--ignore_gate", "true"]
    words += ["--steps", "1", "--critic.alone", "1", "--num_answers", "2", "--sampling.max_tokens", "4"]
    assert main(words) == OK
    assert RunDirectory(tmp_path).read_config()["policy"]["critic"]["start"] == "policy"
