import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from assay.records import Finding
from assay.report import run as run_module
from assay.report.run import RunDirectory, Sample, environment, plain, read_json, read_jsonl, write_json, write_text
from assay.settings import InputError


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def steps(run: RunDirectory, stage: str | None = None) -> list[int]:
    return [row["step"] for row in run.read_metrics(stage)]


def test_metrics_come_back_as_written(run):
    run.append_metrics(0, {"reward": 0.25, "kl": math.nan, "num": np.int64(3), "share": np.float32(0.5)})
    run.append_metrics(1, {"reward": math.inf})
    assert run.metrics.read_text().splitlines()[0] == '{"step": 0, "reward": 0.25, "kl": null, "num": 3, "share": 0.5}'
    assert run.read_metrics() == [
        {"step": 0, "reward": 0.25, "kl": None, "num": 3, "share": 0.5},
        {"step": 1, "reward": None},
    ]


def test_each_line_is_on_disk_at_once(run):
    run.append_metrics(0, {"loss": 1.0})
    code = f"print(open({str(run.metrics)!r}).read(), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == '{"step": 0, "loss": 1.0}\n'


@pytest.mark.parametrize("tail", ['{"step": 2, "rew', '{"step": 2, "reward": 0.', '{"', "\x00\x00", '{"text": "\xe2'])
def test_a_cut_last_line_is_left_out_and_counted(run, tail):
    run.append_metrics(0, {"reward": 0.0})
    run.append_metrics(1, {"reward": 0.1})
    with run.metrics.open("ab") as file:
        file.write(tail.encode("latin-1"))
    assert read_jsonl(run.metrics) == ([{"step": 0, "reward": 0.0}, {"step": 1, "reward": 0.1}], 1)
    assert steps(run) == [0, 1]
    run.append_metrics(2, {"reward": 0.2})
    assert steps(run) == [0, 1, 2]


def test_a_whole_last_line_without_newline_counts(run):
    run.path.mkdir()
    run.metrics.write_text('{"step": 0}\n{"step": 1}')
    run.append_metrics(2, {})
    assert steps(run) == [0, 1, 2]


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", "NaN}"])
def test_a_broken_line_in_the_middle_is_an_error(run, line):
    run.path.mkdir()
    run.metrics.write_text(f'{{"step": 0}}\n{line}\n{{"step": 1}}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        run.read_metrics()


def test_resume_drops_what_will_be_written_again(run):
    for step in range(6):
        run.append_metrics(step, {"reward": step / 10})
    assert run.resume_metrics(4) == 2
    assert steps(run) == [0, 1, 2, 3]
    assert run.resume_metrics(4) == 0
    with run.metrics.open("a") as file:
        file.write('{"step": 4, "re')
    assert run.resume_metrics(4) == 1
    assert run.metrics.read_text().count("\n") == 4


def test_resume_leaves_other_stages_alone(run):
    for step in range(3):
        run.append_metrics(step, {"loss": 1.0}, stage="reward")
    for step in range(3):
        run.append_metrics(step, {"reward": 1.0}, stage="policy")
    assert run.resume_metrics(1, stage="policy") == 2
    assert steps(run, "reward") == [0, 1, 2]
    assert steps(run, "policy") == [0]


def test_no_metrics_is_no_error(run):
    assert run.read_metrics() == []
    assert run.resume_metrics(3) == 0
    assert run.read_samples() == []


@pytest.mark.parametrize("step", [-1, 1.0, True, "3"])
def test_a_step_is_a_whole_number(run, step):
    with pytest.raises(InputError, match="whole number"):
        run.append_metrics(step, {})


def test_values_may_not_name_the_step(run):
    with pytest.raises(InputError, match="step must not be among the values"):
        run.append_metrics(1, {"step": 2})


def test_json_is_strict_and_plain(tmp_path):
    finding = Finding(probe="x", value=math.nan, n=2, interval=(-math.inf, 1.0))
    path = write_json(tmp_path / "a" / "audit.json", {"findings": (finding,), "path": tmp_path, "array": np.eye(2)})
    data = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert data["findings"][0]["value"] is None
    assert data["findings"][0]["interval"] == [None, 1.0]
    assert data["path"] == str(tmp_path)
    assert data["array"] == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(TypeError, match="no JSON for set"):
        plain({1})


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = write_text(tmp_path / "audit.json", "old")
    monkeypatch.setattr(run_module.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["audit.json"]


def test_bad_json_names_file_and_line(tmp_path):
    (tmp_path / "audit.json").write_text('{\n"a": }')
    with pytest.raises(InputError, match=r"audit\.json, line 2: not JSON"):
        read_json(tmp_path / "audit.json")
    with pytest.raises(InputError, match=r"b\.json: no such file"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_bytes(b'"\xff"')
    with pytest.raises(InputError, match=r"c\.json: not UTF-8 at byte 1"):
        read_json(tmp_path / "c.json")


def test_config_round_trip(run):
    config = {
        "stage": "policy",
        "rate": 1e-6,
        "country": "no",
        "version": "1e5",
        "betas": (0.9, 0.99),
        "data": {"x": None},
    }
    run.write_config(config)
    assert run.read_config() == {**config, "betas": [0.9, 0.99]}
    assert list(run.read_config()) == list(config)


@pytest.mark.parametrize(("text", "words"), [("a: [1", "not YAML"), ("- 1\n", "expected a mapping"), (None, "no such")])
def test_bad_config_is_named(run, text, words):
    run.path.mkdir()
    if text is not None:
        run.config.write_text(text)
    with pytest.raises(InputError, match=rf"config\.yaml: {words}"):
        run.read_config()


def test_samples_round_trip(run):
    samples = [
        Sample(prompt="a\ud800", base="b\u202e\x00", policy="c\n", base_reward=1.5, policy_oracle=0.0),
        Sample(prompt="", base="", policy="", policy_reward=math.nan),
    ]
    run.write_samples(samples)
    back = run.read_samples()
    assert back[0] == samples[0]
    assert back[1] == Sample(prompt="", base="", policy="")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x", "base": "y"}, "policy must be text"),
        ({"prompt": 1}, "prompt must be text"),
        ({"prompt": "x", "base": "y", "policy": "z", "base_reward": "1"}, "base_reward must be a number or null"),
    ],
)
def test_a_bad_sample_is_named(run, row, words):
    run.path.mkdir()
    run.samples.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"samples\.jsonl, row 1: {words}"):
        run.read_samples()


def test_environment_says_versions_and_imports_nothing():
    code = "import sys; from assay.report.run import environment; e = environment(); print(e['packages']['torch'])"
    check = "; print([name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    version, imported = done.stdout.splitlines()
    import torch

    assert version.split("+")[0] == torch.__version__.split("+")[0]
    assert imported == "[]"
    assert environment()["python"] == ".".join(map(str, sys.version_info[:3]))


def test_record_keeps_other_stages(run):
    run.record("reward", seed=1)
    run.record("policy", seed=2)
    run.record("reward", seed=3)
    data = read_json(run.provenance)
    assert {stage: facts["seed"] for stage, facts in data.items()} == {"reward": 3, "policy": 2}
    assert data["policy"]["environment"] == environment()
