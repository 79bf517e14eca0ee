"""The whole line on a tiny model, through the command line, in one run directory."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from assay.audit.run import Audit
from assay.cli import OK, REFUSED, main
from assay.feedback.read import read_comparisons
from assay.report.run import RunDirectory, read_json
from assay.rewards.model import RewardModel
from tiny import demonstrations, pairs, prompts, tiny_model, tokenizer, write

COMMON = ["--dtype", "float32", "--model", tiny_model]
TEXTS = ("The fox sat by the river.", "It rained all day long.")
JUDGED = ["--samples.oracle", "text", "--dtype", "float32"]
SAMPLING = ["--sampling.max_tokens", "6"]


def assay(*words: object) -> int:
    return main([str(word() if callable(word) else word) for word in words])


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> RunDirectory:
    """collect, reward, audit, policy against the audited reward, evaluate, report."""
    folder = tmp_path_factory.mktemp("line")
    asked = write(folder / "prompts.jsonl", prompts(12))
    text = write(folder / "text.jsonl", [{"text": line} for line in TEXTS])
    run = folder / "run"
    assert assay("collect", "--run", run, "--prompts.path", asked, "--num_answers", 4, *SAMPLING, *COMMON) == OK
    reward = ["--data.path", run / "feedback.jsonl", "--held_out", 4, "--batch_size", 4, "--optimiser.lr", "0.01"]
    assert assay("reward", "--run", run, *reward, *COMMON) == OK
    audit = ["--samples.prompts.path", asked, "--samples.model", tiny_model, "--samples.num_answers", 4]
    code = assay("audit", "--run", run, *audit, "--samples.sampling.max_tokens", 6, *JUDGED)
    assert code == (OK if Audit.load(run / "audit.json").verdict.passed else REFUSED)
    policy = ["--data.path", asked, "--steps", 3, "--batch_size", 4, "--num_answers", 2, "--ignore_gate", "true"]
    watch = ["--oracle", "text", "--watch.path", asked, "--watch_every", 2]
    assert assay("policy", "--run", run, *policy, *watch, *SAMPLING, *COMMON) == OK
    judged = ["--prompts.path", asked, "--oracle", "text", "--text.path", text]
    assert assay("evaluate", "--run", run, "--base", tiny_model, *judged, *SAMPLING, "--dtype", "float32") == OK
    assert assay("report", "--run", run) == OK
    return RunDirectory(run)


def test_every_artifact_is_there(line):
    for path in (
        line.config, line.metrics, line.feedback, line.audit, line.evaluation, line.samples, line.provenance,
        line.report, line.reward / "model.safetensors", line.reward / "assay.json", line.policy / "model.safetensors",
        line.path / "held_out.jsonl", line.path / "held_out.json", line.path / "scored_pairs.parquet",
        line.path / "scored_samples.parquet",
    ):  # fmt: skip
        assert path.stat().st_size > 0, path
    assert set(read_json(line.provenance)) == {"collect", "reward", "audit", "policy", "evaluate"}
    assert "<html" in line.report.read_text()


def test_metrics_have_the_documented_names(line):
    reward, policy = line.read_metrics("reward"), line.read_metrics("policy")
    assert [row["step"] for row in reward] == list(range(1, len(reward) + 1))
    assert {"loss", "nll", "accuracy", "margin", "mean_reward", "grad_norm", "lr", "seconds"} <= set(reward[0])
    assert [row["step"] for row in policy] == [0, 1, 2, 3]
    assert set(policy.pop(0)) == {"step", "stage", "oracle", "oracle_error", "proxy"}  # the base, before any step
    assert {
        "loss", "reward", "reward_std", "frac_reward_zero_std", "rewards/model/mean", "length_mean", "share_cut", "kl",
        "kl_k3", "kl_per_token", "kl_k3_per_token", "entropy", "sampler_gap", "grad_norm", "lr", "seconds",
        "seconds_sampling", "seconds_scoring",
    } <= set(policy[0])  # fmt: skip
    assert ["oracle" in row for row in policy] == [False, True, True]  # every 2 steps and at the end
    assert abs(policy[0]["kl"]) < 1e-4 and policy[0]["sampler_gap"] < 1e-4  # the first step is the reference's


def test_what_was_audited_is_what_was_saved(line):
    """The table that the audit read holds the saved model's rewards of the held-out pairs."""
    table = pyarrow.parquet.read_table(line.path / "scored_pairs.parquet").to_pydict()
    comparisons = read_comparisons(line.path / "held_out.jsonl").records
    reward = RewardModel.from_pretrained(str(line.reward), dtype="float32")
    chosen = reward.score([(c.prompt, c.chosen) for c in comparisons])
    rejected = reward.score([(c.prompt, c.rejected) for c in comparisons])
    assert table["reward_chosen"] == pytest.approx(chosen, abs=1e-4)
    assert table["reward_rejected"] == pytest.approx(rejected, abs=1e-4)
    right = sum((a > b) + 0.5 * (a == b) for a, b in zip(chosen, rejected)) / len(chosen)
    assert read_json(line.path / "held_out.json")["held-out accuracy"]["value"] == pytest.approx(right)


def test_training_and_held_out_prompts_do_not_meet(line):
    held = {c.prompt.id for c in read_comparisons(line.path / "held_out.jsonl").records}
    everything = read_comparisons(line.feedback).records
    told = read_json(line.provenance)["reward"]
    assert len(held) == 4
    assert told["num_pairs"] == sum(c.prompt.id not in held for c in everything)
    assert told["num_held_out"] == sum(c.prompt.id in held for c in everything)


def test_the_evaluation_speaks_of_these_policies(line):
    found = {f["probe"]: f for f in read_json(line.evaluation)["findings"]}
    assert found["gain"]["value"] == pytest.approx(found["oracle/policy"]["value"] - found["oracle/base"]["value"])
    rows = line.read_samples()
    assert len(rows) == 12
    assert found["oracle/base"]["value"] == pytest.approx(sum(row.base_oracle for row in rows) / 12)
    assert found["kl_k3"]["value"] >= 0
    assert found["text_nll/change"]["value"] == pytest.approx(
        found["text_nll/policy"]["value"] - found["text_nll/base"]["value"], abs=1e-6
    )
    network = AutoModelForCausalLM.from_pretrained(line.policy, dtype=torch.float32).eval()
    losses = []
    for text in TEXTS:
        ids = tokenizer()(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            losses.append(network(ids, labels=ids).loss.item())
    assert found["text_nll/policy"]["value"] == pytest.approx(sum(losses) / 2, abs=1e-3)


def test_under_a_cut_both_sides_are_read_whole(tmp_path):
    """A policy that is its base has its perplexity, though what was drawn was told among fewer tokens."""
    asked = write(tmp_path / "prompts.jsonl", prompts(12))
    words = ["--run", tmp_path, "--policy", tiny_model(), "--base", tiny_model(), "--prompts.path", asked]
    words += ["--sampling.top_p", 0.5, *SAMPLING, "--oracle", "text", "--dtype", "float32"]
    assert assay("evaluate", *words) == OK
    found = {f["probe"]: f["value"] for f in read_json(RunDirectory(tmp_path).evaluation)["findings"]}
    assert found["perplexity/ratio"] == pytest.approx(1, abs=1e-4) and found["gain"] == 0


def test_the_same_command_again_keeps_what_was_trained(line, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(line.path, run)
    before = load_file(run / "reward" / "model.safetensors")
    num_lines = len(RunDirectory(run).read_metrics("reward"))
    # The copy lies elsewhere; the data are named by their old place, as in the first command.
    words = ["--data.path", line.feedback, "--held_out", 4, "--batch_size", 4, "--optimiser.lr", "0.01"]
    capsys.readouterr()
    assert assay("reward", "--run", run, *words, *COMMON) == OK
    assert f"resumed after step {num_lines} of {num_lines}" in capsys.readouterr().out
    after = load_file(run / "reward" / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert len(RunDirectory(run).read_metrics("reward")) == num_lines


def test_an_audit_speaks_of_one_reward_only(line, tmp_path, capsys):
    """A gate that passed for one reward is closed for another, and for the same folder once it changed."""
    run = tmp_path / "run"
    shutil.copytree(line.path, run)
    told = json.loads((run / "audit.json").read_text()) | {"passed": True, "reasons": []}
    (run / "audit.json").write_text(json.dumps(told))
    words = ["policy", "--run", run, "--data.path", line.path.parent / "prompts.jsonl", "--steps", 1, "--batch_size", 2]
    words += ["--num_answers", 2, "--checkpoints.every", 0, *SAMPLING, *COMMON]
    shutil.rmtree(run / "checkpoints")
    assert assay(*words) == OK
    config = run / "reward" / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-05"))
    capsys.readouterr()
    assert assay(*words) == 2
    assert "speaks of another reward" in capsys.readouterr().err


@pytest.mark.parametrize("lora", ["0", "4"])
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_direct_methods_learn_what_they_are_told(method, lora, tmp_path):
    rows = pairs(8) if method == "dpo" else demonstrations(8)
    data = write(tmp_path / "data.jsonl", rows)
    words = ["--data.path", data, "--epochs", 3, "--batch_size", 4, "--optimiser.lr", "0.01", "--lora.rank", lora]
    assert assay("policy", "--run", tmp_path / "run", "--algorithm.name", method, *words, *COMMON) == OK
    metrics = RunDirectory(tmp_path / "run").read_metrics("policy")
    assert len(metrics) == 6
    if method == "dpo":
        first, last = metrics[0], metrics[-1]
        assert first["loss"] == pytest.approx(0.693147, abs=1e-4)  # log 2: policy and reference are one
        assert last["loss"] < 0.6 and last["rewards/accuracies"] == 1
        assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], abs=1e-3)
    else:
        assert metrics[-1]["nll"] < metrics[0]["nll"] - 0.5
    network, info = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy", output_loading_info=True)
    assert not info["missing_keys"] and network.config.model_type == "llama"


def test_model_folders_need_nothing_of_this_package(line):
    told = (Path(line.policy) / "config.json").read_text() + (Path(line.reward) / "config.json").read_text()
    assert "assay" not in told and "auto_map" not in told
