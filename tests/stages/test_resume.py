"""A run that died and went on is the run that did not die, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from assay.cli import OK, WRONG_INPUT, main
from assay.report.run import RunDirectory
from assay.train.loop import Training
from tiny import demonstrations, pairs, prompts, tiny_model, tiny_reward, write

NUM_STEPS = 6  # two epochs of three steps, so that step 3 is a boundary


class Died(BaseException):
    """What a test raises where a process would be killed."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "pairs": write(folder / "pairs.jsonl", pairs(12)),
        "sft": write(folder / "sft.jsonl", demonstrations(5)),
        "prompts": write(folder / "prompts.jsonl", prompts(12)),
    }


TWICE = ["--algorithm.num_epochs", "2"]  # so that a checkpoint falls between two steps on one batch
ONLINE = {
    "rloo": [],
    "rloo limited": ["--stop.kl", "100", "--stop.length", "50"],
    "ppo": [*TWICE, "--critic.lr", "0.01", "--critic.alone", "0"],
    "ppo shared": [*TWICE, "--critic.kind", "shared"],
    "ppo adapter": [*TWICE, "--critic.kind", "adapter", "--lora.rank", "2"],
    "ppo_max": [*TWICE, "--algorithm.num_minibatches", "1", "--critic.alone", "0"],
    "nlpo": [*TWICE, "--algorithm.sync", "2"],
    "xpo": ["--num_answers", "1", "--algorithm.alpha", "0.01", "0.001", "--algorithm.alpha_batches", "2"],
    "reinforce": ["--reference.every", "2", "--reference.share", "0.5", "--algorithm.target_kl", "0.1"],
    "grpo": ["--algorithm.dynamic_sampling", "true", "--sampling.top_p", "0.9", "--cut_answers", "penalty"],
}


def command(method: str, files: dict[str, str]) -> list[str]:
    common = ["--model", tiny_model(), "--batch_size", "4", "--epochs", "2", "--optimiser.lr", "0.003", "--seed", "5"]
    if method.startswith("reward"):
        dtype = method.partition(" ")[2]
        return ["reward", "--data.path", files["pairs"], "--held_out", "0", "--dtype", dtype, "--verify=false", *common]
    if method in ONLINE:
        words = ["--data.path", files["prompts"], "--reward", tiny_reward(), "--ignore_gate", "true"]
        words += ["--num_answers", "2", "--sampling.max_tokens", "6", *ONLINE[method]]
        common[common.index("--epochs") + 1] = "1" if "--algorithm.num_epochs" in words else "2"
    else:
        words = ["--data.path", files["pairs"], "--algorithm.sft_coef", "0.5", "--streams.sft.path", files["sft"]]
        words += ["--lora.rank", "2" if method == "dpo LoRA" else "0"]
    return ["policy", "--algorithm.name", method.split()[0], *words, "--dtype", "float32", *common]


def go(words: list[str], run: Path, every: int = 0) -> int:
    return main([*words, "--run", str(run), "--checkpoints.every", str(every)])


def die_at(step: int, monkeypatch) -> None:
    """The process dies while it computes this step."""
    real = Training.one_step

    def one_step(self):
        if self.step + 1 == step:
            raise Died
        return real(self)

    monkeypatch.setattr(Training, "one_step", one_step)


def outcome(run: Path):
    """Weights, everything in the last checkpoint, and all metrics but the clock's."""
    place = RunDirectory(run)
    stage = "reward" if place.reward.exists() else "policy"
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in place.read_metrics(stage)]
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    saved = place.checkpoints / stage / f"step-{NUM_STEPS}"
    state = (saved / "state.json").read_text()
    return load_file(place.path / stage / "model.safetensors"), load_file(saved / "tensors.safetensors"), state, rows


def assert_same(found, expected) -> None:
    for some, other in zip(found[:2], expected[:2], strict=True):
        assert some.keys() == other.keys()
        assert [name for name in some if not torch.equal(some[name], other[name])] == []
    assert found[2:] == expected[2:]


METHODS = ["reward float32", "reward bfloat16", "dpo", "dpo LoRA", *ONLINE]


@pytest.fixture(scope="module", params=METHODS)
def whole(request, files, tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert go(command(request.param, files), folder) == OK
    return request.param, outcome(folder)


@pytest.mark.parametrize("every", [2, 3], ids=["mid-epoch", "boundary"])
def test_going_on_gives_the_same_run(whole, every, files, tmp_path, monkeypatch, capsys):
    method, expected = whole
    words = command(method, files)
    with monkeypatch.context() as patch:
        die_at(every + 2, patch)  # a step after the checkpoint is lost, and its metrics are already written
        with pytest.raises(Died):
            go(words, tmp_path, every)
    capsys.readouterr()
    assert go(words, tmp_path, every) == OK
    assert f"resumed after step {every} of {NUM_STEPS}" in capsys.readouterr().out
    assert_same(outcome(tmp_path), expected)


def test_other_seeds_and_data_orders_do_differ(files, tmp_path):
    """The comparison above can fail."""
    words = command("reward float32", files)
    words[words.index("--seed") + 1] = "6"
    assert go(words, tmp_path / "other") == OK
    assert go(command("reward float32", files), tmp_path / "one") == OK
    with pytest.raises(AssertionError):
        assert_same(outcome(tmp_path / "other"), outcome(tmp_path / "one"))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from assay.train.loop import Training
real = Training.one_step
def one_step(self):
    if self.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self)
Training.one_step = one_step
from assay.cli import main
main(sys.argv[1:])
"""


def test_kill_9_and_the_same_command_again(files, tmp_path):
    words = command("reward float32", files)
    assert go(words, tmp_path / "whole") == OK
    code = KILLED.format(tests=str(Path(__file__).parents[1]))
    told = [*words, "--run", str(tmp_path / "killed"), "--checkpoints.every", "2"]
    killed = subprocess.run(
        [sys.executable, "-c", code, *told], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "killed" / "reward").exists()
    assert go(words, tmp_path / "killed", 2) == OK
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))


@pytest.fixture
def stopped(files, tmp_path, monkeypatch, request):
    """A run with a checkpoint after step 2, dead in step 4."""
    words = command(request.param, files)
    with monkeypatch.context() as patch:
        die_at(4, patch)
        with pytest.raises(Died):
            go(words, tmp_path, 2)
    return words


def refused(words: list[str], run: Path, capsys) -> str:
    before = {path: path.read_bytes() for path in (run / "config.yaml", run / "metrics.jsonl")}
    capsys.readouterr()
    assert go(words, run, 2) == WRONG_INPUT
    assert {path: path.read_bytes() for path in before} == before  # the stopped run is as it was
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    return told[0]


@pytest.mark.parametrize("stopped", ["reward float32"], indirect=True)
def test_changed_settings_are_named(stopped, tmp_path, capsys):
    said = refused([*stopped, "--optimiser.lr", "0.004", "--batch_size", "3"], tmp_path, capsys)
    assert "config.optimiser.lr: 0.003 -> 0.004" in said and "config.batch_size: 4 -> 3" in said


@pytest.mark.parametrize("stopped", ["reward float32"], indirect=True)
def test_changed_data_are_named(stopped, tmp_path, capsys):
    path = Path(stopped[stopped.index("--data.path") + 1])
    before = path.read_text()
    try:
        path.write_text(before.replace("Yes, one", "Yes, two", 1))
        assert "data: " in refused(stopped, tmp_path, capsys)
    finally:
        path.write_text(before)


@pytest.mark.parametrize("stopped", ["dpo"], indirect=True)
def test_changed_data_of_a_second_stream_are_named(stopped, tmp_path, capsys):
    path = Path(stopped[stopped.index("--streams.sft.path") + 1])
    before = path.read_text()
    try:
        path.write_text(before.replace("Yes, one", "Yes, two", 1))
        assert "data.sft: " in refused(stopped, tmp_path, capsys)
    finally:
        path.write_text(before)


@pytest.mark.parametrize("stopped", ["rloo"], indirect=True)
def test_another_reward_is_named(stopped, tmp_path, capsys):
    assert go(command("reward float32", {"pairs": write(tmp_path / "p.jsonl", pairs(4))}), tmp_path / "other") == OK
    said = refused([*stopped, "--reward", str(tmp_path / "other" / "reward")], tmp_path, capsys)
    assert "reward.model: " in said  # known by its content: a copy elsewhere is the same reward


@pytest.mark.parametrize("stopped", ["reward float32"], indirect=True)
def test_a_damaged_checkpoint_is_named_not_skipped(stopped, tmp_path, capsys):
    path = tmp_path / "checkpoints" / "reward" / "step-2" / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    assert f"{path}: damaged" in refused(stopped, tmp_path, capsys)
