"""A user's likelihood and algorithm, from the pages that teach them, through the line that the built-in ones take."""

import re
from pathlib import Path

import pytest

from assay.cli import OK, WRONG_INPUT, main
from assay.config import config_class
from assay.report.run import RunDirectory
from assay.rewards.likelihoods import check_gradient
from tiny import pairs, prompts, tiny_model, write

DOCS = Path(__file__).parents[2] / "docs"


def taught(page: str, title: str) -> str:
    """The block of this title on a page."""
    found = re.search(rf'```python title="{title}"\n(.*?)```', (DOCS / page).read_text(), re.DOTALL)
    assert found, f"{page} has no {title}"
    return found[1]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A reader's folder with both files."""
    for page, title in (("reward.md", "my_likelihood.py"), ("algorithms.md", "my_algorithm.py")):
        (tmp_path / title).write_text(taught(page, title))
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = {"reward": "my_likelihood.py:Hinge", "policy": "my_algorithm.py:MyAlgorithm"}


def test_a_users_likelihood_and_algorithm_train_as_the_built_in_and_the_config_names_both(own, capsys):
    """Pluggable likelihood and RL algorithm: same command line; gradient = finite difference; the config names both."""
    likelihood = config_class("reward", NAMES["reward"])().likelihood
    algorithm = config_class("policy", NAMES["policy"])().algorithm
    assert (type(likelihood).__name__, type(algorithm).__name__) == ("Hinge", "MyAlgorithm")
    assert (likelihood.name, algorithm.name) == (NAMES["reward"], NAMES["policy"])
    assert check_gradient(likelihood) < 1e-6

    common = ["--run", "run", "--model", tiny_model(), "--dtype", "float32", "--batch_size", "4"]
    feedback, asked = write(own / "feedback.jsonl", pairs(12)), write(own / "prompts.jsonl", prompts(8))
    reward = ["--data.path", feedback, "--held_out", "3", "--likelihood", NAMES["reward"], "--likelihood.margin", "0.5"]
    assert main(["reward", *common, *reward]) == OK
    policy = ["--data.path", asked, "--algorithm", NAMES["policy"], "--algorithm.z_coef", "0.01", "--steps", "2"]
    short = ["--num_answers", "2", "--sampling.max_tokens", "6", "--ignore_gate", "true"]
    assert main(["policy", *common, *policy, *short]) == OK

    run = RunDirectory(own / "run")
    config = run.read_config()
    assert config["reward"]["likelihood"] == {"name": NAMES["reward"], "margin": 0.5}
    assert config["policy"]["algorithm"] == {"name": NAMES["policy"], "z_coef": 0.01}
    assert {"nll", "accuracy"} <= set(run.read_metrics("reward")[0])
    assert {"nll", "z", "reward"} <= set(run.read_metrics("policy")[0])

    capsys.readouterr()
    for verb, name in NAMES.items():
        assert main([verb, "--config", "run/config.yaml", "--print-config"]) == OK
        assert f"name: {name}" in capsys.readouterr().out, "the file alone chooses them again"


def test_a_run_does_not_go_on_with_another_algorithm_of_the_same_name(own, capsys):
    words = ["policy", "--run", "run", "--model", tiny_model(), "--dtype", "float32", "--steps", "2"]
    words += ["--data.path", write(own / "prompts.jsonl", prompts(4)), "--rules", "assay.feedback.oracles:length_lover"]
    words += ["--algorithm", NAMES["policy"], "--num_answers", "2", "--sampling.max_tokens", "4"]
    assert main(words) == OK and main(words) == OK
    (own / "elsewhere").mkdir()
    (own / "my_algorithm.py").rename(own / "elsewhere" / "my_algorithm.py")
    words[words.index(NAMES["policy"])] = f"elsewhere/{NAMES['policy']}"
    assert main(words) == OK  # known by its text
    (own / "elsewhere" / "my_algorithm.py").rename(own / "my_algorithm.py")
    words[words.index(f"elsewhere/{NAMES['policy']}")] = NAMES["policy"]
    (own / "my_algorithm.py").write_text((own / "my_algorithm.py").read_text() + "\n# another\n")
    capsys.readouterr()
    assert main(words) == WRONG_INPUT
    assert "had other settings (algorithm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "setting", "base", "class_name"),
    [("reward", "likelihood", "my_likelihood.py", "Hinge"), ("policy", "algorithm", "my_algorithm.py", "MyAlgorithm")],
)
def test_a_name_that_cannot_hold_the_place_is_said(own, capsys, verb, setting, base, class_name):
    text = (own / base).read_text()
    fixed = re.sub(r'name: str = "\S+"', 'name: typing.Literal["mine"] = "mine"', text)
    (own / "fixed.py").write_text(f"import typing\n\n{fixed}")
    assert main([verb, f"--{setting}", f"fixed.py:{class_name}", "--print-config"]) == WRONG_INPUT
    assert f"{setting}.name: declare `name: str` in fixed.py:{class_name}" in capsys.readouterr().err
