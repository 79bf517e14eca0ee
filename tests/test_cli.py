"""The command line: what it refuses, in one line that says where and what to do, before any model is loaded."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import assay.engine.load
from assay.cli import FAULT, OK, REFUSED, VERBS, WRONG_INPUT, first_sentence, main
from assay.engine.catalog import hash_of_folder
from tiny import CONTEXT, demonstrations, pairs, prompts, tiny_model, tiny_reward, write


@pytest.fixture
def no_model(monkeypatch) -> None:
    """Loading a model fails the test."""

    def load(*_args, **_options):
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(assay.engine.load, "_load", load)


def config_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def reward_words(tmp_path: Path, data: object) -> list[object]:
    return ["reward", "--run", tmp_path / "run", "--model", tiny_model(), "--data.path", data, "--dtype", "float32"]


def rloo_words(tmp_path: Path) -> list[object]:
    asked = write(tmp_path / "prompts.jsonl", prompts(4))
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--data.path", asked, "--steps", 1]
    return [*words, "--batch_size", 2, "--num_answers", 2, "--sampling.max_tokens", 4, "--dtype", "float32"]


# Verbs, flags and files of settings


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == OK
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")] == list(VERBS)


def test_an_unknown_verb_names_the_nearest(refused):
    assert refused("polcy") == "assay polcy: unknown verb 'polcy'. Did you mean 'policy'? `assay --help` lists them"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "verb, text, said",
    [
        ("reward", "optimiser:\n  learing_rate: 0.1\n", "unknown key optimiser.learing_rate."),
        ("reward", "batch_sise: 4\n", "unknown key batch_sise. Did you mean 'batch_size'?"),
        ("policy", "algorithm: {name: dpo, bete: 0.1}\n", "unknown key algorithm.bete. Did you mean 'beta'?"),
        ("policy", "streams: {sft: {pth: x}}\n", "unknown key streams.sft.pth. Did you mean 'path'?"),
        ("policy", "algorithm: dpo\n", "algorithm: write `name: dpo` on a line below it"),
        (
            "policy",
            "algorithm: {name: rlo}\n",
            "Did you mean 'rloo'?",
        ),
        ("policy", "algorithm: {name: 5}\n", "algorithm.name must be text; got 5"),
        ("policy", "algorithm: {name: bradley_terry}\n", "'bradley_terry' is not one of sft, dpo, "),
        ("reward", "batch_size: eight\n", "batch_size: Input should be a valid integer"),
        ("reward", "batch_size: '8'\n", "batch_size: Input should be a valid integer"),
        ("reward", "optimiser: {lr: '1e-5'}\n", "optimiser.lr: Input should be a valid number"),
        ("reward", "verify: no\n", "verify: Input should be a valid boolean"),
        ("reward", "dtype: fp8\n", "dtype: Input should be 'auto', 'float32' or 'bfloat16'"),
        ("reward", "optimiser: 3\n", "optimiser: "),
        ("reward", "seed: 2020-01-01\n", "a date or another YAML type"),
        ("reward", "batch_size: [1\n", "not YAML"),
        ("reward", "- batch_size\n", "a config file holds `name: value` lines; got list"),
    ],
)
def test_a_wrong_config_file_is_one_line(verb, text, said, tmp_path, refused):
    path = config_file(tmp_path / "config.yaml", text)
    told = refused(verb, "--config", path)
    assert str(path) in told or "algorithm.name" in told
    assert said in told


def test_numbers_as_people_write_them_are_numbers(tmp_path, capsys):
    path = config_file(tmp_path / "config.yaml", "optimiser:\n  lr: 1e-5\nepochs: 2\nverify: false\n")
    assert main(["reward", "--config", str(path), "--print-config"]) == OK
    out = capsys.readouterr().out
    assert "lr: 1e-05" in out and "epochs: 2.0" in out and "verify: false" in out


def test_a_missing_config_file_names_the_nearest(tmp_path, refused):
    config_file(tmp_path / "reward.yaml", "seed: 1\n")
    said = refused("reward", "--config", tmp_path / "rewrad.yaml")
    assert "rewrad.yaml: no such config file. Did you mean 'reward.yaml'?" in said
    assert "--config needs a file" in refused("reward", "--config")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "words, said",
    [
        (["reward", "--optimiser.learing_rate", "1"], "unknown setting --optimiser.learing_rate."),
        (["reward", "--batch_sise", "1"], "unknown setting --batch_sise. Did you mean 'batch_size'?"),
        (["policy", "--streams.sft.pth", "x"], "unknown setting --streams.sft.pth. Did you mean 'streams.sft.path'?"),
        (["policy", "--algorithm.beta", "1"], "unknown setting --algorithm.beta."),  # rloo has none
        (["policy", "--algorithm.name", "rlo"], "Did you mean 'rloo'?"),
        (["reward", "--batch_size", "eight"], "--batch_size: invalid literal for int()"),
        (["reward", "--optimiser.lr=fast"], "--optimiser.lr: could not convert string to float: 'fast'"),
        (["reward", "--dtype", "fp8"], "invalid choice 'fp8' for argument '--dtype'"),
        (["reward", "--verify", "maybe"], "invalid choice 'maybe' for argument '--verify'"),
        (["reward", "--batch_size"], "Missing value for argument '--batch_size'"),
        (["reward", "--seed", "1", "stray"], "Unrecognized options: stray"),
        (["reward", "--batch_size", "0"], "batch_size must be at least 1; got 0"),
        (["reward", "--checkpoints.keep", "0"], "checkpoints.keep must be at least 1; got 0"),
        (["policy", "--sampling.temperature", "0"], "sampling.temperature must be more than 0; got 0"),
        (["reward", "--optimiser.lr=-1"], "optimiser.lr must be at least 0; got -1"),
        (["reward", "--optimiser.lr", "nan"], "optimiser.lr must be a finite number; got nan"),
        (["reward", "--epochs", "inf"], "epochs must be a finite number; got inf"),
        (["reward", "--lora.alpha", "0"], "lora.alpha must be more than 0; got 0"),
        (["reward", "--labelled", "0"], "labelled must be more than 0; got 0"),
        (["reward", "--optimiser.warmup", "100"], "optimiser.warmup must be at most 1; got 100"),
        (["audit", "--seed", "-1"], "seed must be from 0 to 2^62; got -1"),
        (["collect", "--seed", "99999999999999999999"], "seed must be from 0 to 2^62"),
        (["policy", "--stop.smoothing", "1"], "stop.smoothing must be below 1"),
        (["policy", "--algorithm.target_kl=-5"], "algorithm.target_kl must be at least 0; got -5"),
    ],
)
def test_a_wrong_flag_is_one_line(words, said, refused):
    assert said in refused(*words)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["policy", "--ignore_gate", "true"], "ignore_gate: true"),
        (["policy", "--ignore_gate"], "ignore_gate: true"),
        (["policy", "--ignore-gate", "--seed", "3"], "ignore_gate: true"),
        (["reward", "--verify=false"], "verify: false"),
        (["policy", "--algorithm.name", "dpo", "--algorithm.beta", "0.3"], "beta: 0.3"),
        (["policy", "--algorithm.name=dpo", "--streams.sft.path", "x.jsonl"], "path: x.jsonl"),
        (["policy", "--rules", "0.5*a.py:f", "b.py:g"], "- 0.5*a.py:f\n- b.py:g"),
    ],
)
def test_flags_are_understood(words, expected, capsys):
    assert main([*words, "--print-config"]) == OK
    assert expected in capsys.readouterr().out


def test_the_command_line_overrides_the_file(tmp_path, capsys):
    path = config_file(tmp_path / "c.yaml", "algorithm: {name: dpo, beta: 0.2}\nseed: 4\nstreams: {sft: {path: a}}\n")
    words = ["--config", str(path), "--algorithm.beta", "0.7", "--streams.sft.limit=9", "--print-config"]
    assert main(["policy", *words]) == OK
    out = capsys.readouterr().out
    assert "beta: 0.7" in out and "seed: 4" in out and "path: a" in out and "limit: 9" in out


def test_what_is_printed_can_be_read_again(tmp_path, capsys):
    assert main(["policy", "--algorithm.name", "dpo", "--streams.sft.path", "x", "--print-config"]) == OK
    printed = capsys.readouterr().out
    path = config_file(tmp_path / "again.yaml", printed)
    assert main(["policy", "--config", str(path), "--print-config"]) == OK
    assert capsys.readouterr().out == printed


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_reads_what_the_settings_name(tmp_path, refused, capsys):
    good = write(tmp_path / "pairs.jsonl", pairs(2))
    assert main(["reward", "--data.path", good, "--dry-run"]) == OK
    assert "nowhere.jsonl" in refused("reward", "--data.path", tmp_path / "nowhere.jsonl", "--dry-run")
    assert "no.jsonl" in refused("evaluate", "--prompts.path", good, "--text.path", tmp_path / "no.jsonl", "--dry-run")
    rules = write(tmp_path / "rules.jsonl", [{"name": "kind", "text": "It is kind.", "negation": "It is rude."}])
    told = ["score", "--reward", "x", "--data.path", good, "--principles.told", "kind", "--dry-run"]
    assert main([*told, "--principles.path", rules]) == OK
    assert "missing.jsonl" in refused(*told, "--principles.path", tmp_path / "missing.jsonl")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("likelihood", ["plackett_luce", "process", "spans"])
def test_objectives_of_what_has_none_are_refused(likelihood, tmp_path, refused):
    words = ["--data.path", write(tmp_path / "p.jsonl", pairs(2)), "--likelihood", likelihood]
    assert "--data.objectives: " in refused("reward", "--run", tmp_path / "run", *words, "--data.objectives", "x")


# Data


@pytest.mark.usefixtures("no_model")
def test_missing_settings_are_named(tmp_path, refused):
    assert "--run is missing" in refused("reward")
    assert "--data.path is missing" in refused("reward", "--run", tmp_path)
    assert "--prompts.path is missing" in refused("collect", "--run", tmp_path)
    assert "--reward is missing" in refused("score")
    assert "nowhere: no such run directory" in refused("report", "--run", tmp_path / "nowhere")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "content, said",
    [
        ("", "data.jsonl"),
        ("\n\n", "data.jsonl"),
        (json.dumps(pairs(1)[0]) + "\n" + json.dumps(pairs(2)[1])[:-9], "data.jsonl:2"),
        (json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}), "identical pair"),
        (json.dumps({"prompt": "a", "chosen": "b", "rejected": " "}), "empty answer"),
        (json.dumps({"prompt": "a", "choosen": "b", "rejected": "c"}), "chosen"),
    ],
    ids=["empty", "blank", "cut", "identical", "empty answer", "misspelt"],
)
def test_data_that_cannot_be_used_are_refused_with_their_place(content, said, tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    assert main([str(word) for word in reward_words(tmp_path, path)]) == WRONG_INPUT
    told = capsys.readouterr().err
    assert told.startswith(f"assay reward: {path}") and said in told
    assert "Traceback" not in told and len(told.splitlines()) <= 2  # the second line is the record's place


@pytest.mark.usefixtures("no_model")
def test_a_missing_file_names_the_nearest(tmp_path, refused):
    write(tmp_path / "pairs.jsonl", pairs(2))
    assert "Did you mean" in refused(*reward_words(tmp_path, tmp_path / "pair.jsonl"))


def test_bad_rows_are_dropped_and_counted_if_asked(tmp_path, capsys):
    rows = [*pairs(4), {"prompt": "a", "chosen": "b", "rejected": "b"}]
    words = reward_words(tmp_path, write(tmp_path / "d.jsonl", rows))
    assert main([str(w) for w in (*words, "--data.on_bad", "skip", "--held_out", 0, "--verify=false")]) == OK
    assert "4 of 5 records kept\n  dropped: 1 identical pair" in capsys.readouterr().out


LONG = "one " * (CONTEXT + 1)


@pytest.mark.parametrize("method", ["reward", "dpo", "sft", "rloo", "collect", "evaluate"])
def test_what_is_longer_than_the_context_is_refused_or_counted(method, tmp_path, refused, capsys):
    rows = {"reward": pairs, "dpo": pairs, "sft": demonstrations}.get(method, prompts)(4)
    rows[2] = {**rows[2], "prompt": [{"role": "user", "content": LONG}]}
    data = write(tmp_path / "data.jsonl", rows)
    flag = "prompts" if method in ("collect", "evaluate") else "data"
    words = ["--run", tmp_path / "run", f"--{flag}.path", data, "--dtype", "float32"]
    if method == "reward":
        words = ["reward", *words, "--model", tiny_model(), "--held_out", 0, "--verify=false"]
    elif method == "collect":
        words = ["collect", *words, "--model", tiny_model(), "--sampling.max_tokens", 4]
    elif method == "evaluate":
        words = ["evaluate", *words, "--base", tiny_model(), "--policy", tiny_model(), "--oracle", "length"]
        words += ["--sampling.max_tokens", 4]
    else:
        words = ["policy", *words, "--model", tiny_model(), "--algorithm.name", method, "--batch_size", 2]
        if method == "rloo":
            words += ["--reward", tiny_reward(), "--ignore_gate", "--sampling.max_tokens", 4, "--num_answers", 2]
    room = CONTEXT - 4 if method in ("rloo", "collect", "evaluate") else CONTEXT
    told = refused(*words)
    assert f"1 of 4 records are longer than {room} tokens" in told and f"--{flag}.too_long skip" in told
    assert main([str(word) for word in (*words, f"--{flag}.too_long", "skip")]) == OK
    assert f"dropped 1 of 4 records longer than {room} tokens" in capsys.readouterr().out


def test_a_prompt_of_the_watch_that_is_too_long_is_told_before_training(tmp_path, refused):
    watched = write(tmp_path / "watch.jsonl", [{"prompt": LONG}])
    words = [*rloo_words(tmp_path), "--reward", tiny_reward(), "--ignore_gate", "--oracle", "length"]
    assert "--watch.too_long skip" in refused(*words, "--watch.path", watched)


# Models, rewards and the gate


@pytest.mark.usefixtures("no_model")
def test_a_model_that_is_not_there_or_not_whole(tmp_path, refused):
    data = write(tmp_path / "pairs.jsonl", pairs(2))
    words = ["reward", "--run", tmp_path / "run", "--data.path", data, "--held_out", 1, "--model"]
    assert "no model 'no-such-model'" in refused(*words, "no-such-model")
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert f"{folder} has no tokenizer" in refused(*words, folder)


def test_a_causal_model_is_no_reward(tmp_path, refused):
    data = write(tmp_path / "d.jsonl", pairs(2))
    told = refused("audit", "--run", tmp_path, "--data.path", data, "--reward", tiny_model())
    assert "score.weight" in told and "its head is missing" in told


@pytest.mark.usefixtures("no_model")
def test_rloo_needs_a_reward_that_passed_its_audit(tmp_path, refused):
    words = rloo_words(tmp_path)
    assert "--reward is missing" in refused(*words)
    words += ["--reward", tiny_reward()]
    assert "was not audited" in refused(*words)
    run = tmp_path / "run"
    write_audit(run, tiny_reward(), passed=False, reasons=["it loves length"])
    told = refused(*words)
    assert "the gate refuses" in told and "it loves length" in told and "--ignore_gate true" in told
    write_audit(run, tiny_model(), passed=True)
    assert "speaks of another reward" in refused(*words)


def test_a_reward_that_passed_is_optimised_against(tmp_path):
    write_audit(tmp_path / "run", tiny_reward(), passed=True)
    assert main([str(word) for word in (*rloo_words(tmp_path), "--reward", tiny_reward())]) == OK


def write_audit(run: Path, reward: str, *, passed: bool, reasons=()) -> None:
    run.mkdir(exist_ok=True)
    audit = {"passed": passed, "reasons": list(reasons), "counts": {}, "settings": {}, "findings": []}
    (run / "audit.json").write_text(json.dumps(audit))
    (run / "provenance.json").write_text(json.dumps({"audit": {"weights": hash_of_folder(reward)}}))


def test_an_audit_that_fails_says_3(tmp_path, capsys):
    """A random head on few pairs cannot show that it is better than a coin."""
    data = write(tmp_path / "pairs.jsonl", pairs(8))
    words = ["audit", "--run", tmp_path / "run", "--data.path", data, "--reward", tiny_reward(), "--dtype", "float32"]
    assert main([str(word) for word in words]) == REFUSED
    assert "refused: " in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["passed"] is False


# Programmatic rewards


RULES = """
def fine(prompts, responses, **_):
    return [float(len(r[-1]["content"])) for r in responses]
def raises(prompts, responses, **_):
    return 1 / 0
def short(prompts, responses, **_):
    return [1.0]
def nan(prompts, responses, **_):
    return [float("nan")] * len(responses)
def text(prompts, responses, **_):
    return ["good"] * len(responses)
def none(prompts, responses, **_):
    return None
def needs(prompts, responses, gold):
    return [0.0] * len(responses)
"""


@pytest.fixture
def rules(tmp_path) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(RULES)
    return path


@pytest.mark.parametrize(
    "name, said",
    [
        ("raises", "reward function 'raises' failed on 4 responses: ZeroDivisionError"),
        ("short", "reward function 'short' must return 4 finite numbers, one per response; got 1"),
        ("nan", "reward function 'nan' must return 4 finite numbers, one per response; got nan for response 0"),
        ("text", "got str 'good' for response 0"),
        ("none", "got None"),
        ("needs", "needs 'gold', which is neither prompts, responses nor one of the data's columns"),
    ],
)
def test_a_rule_that_misbehaves_stops_the_run_by_name(name, said, rules, tmp_path, refused):
    assert said in refused(*rloo_words(tmp_path), "--rules", f"{rules}:{name}")
    assert not (tmp_path / "run" / "policy").exists()


@pytest.mark.usefixtures("no_model")
def test_rules_are_found_before_any_model_loads(rules, tmp_path, refused):
    words = [*rloo_words(tmp_path), "--reward", tiny_reward(), "--ignore_gate", "--rules"]
    assert "has no 'fien'. Did you mean 'fine'?" in refused(*words, f"{rules}:fien")
    assert "needs 'gold', which is neither prompts" in refused(*words, f"{rules}:needs")
    assert "write weight*file.py:function, weight a number" in refused(*words, f"half*{rules}:fine")
    assert "nowhere.py" in refused(*words, f"{tmp_path}/nowhere.py:fine")
    asked = tmp_path / "prompts.jsonl"
    for words in (
        ["collect", "--run", tmp_path, "--prompts.path", asked],
        ["evaluate", "--run", tmp_path, "--prompts.path", asked, "--policy", tiny_model()],
        ["policy", *rloo_words(tmp_path)[1:], "--rules", f"{rules}:fine", "--watch.path", asked],
    ):
        assert "has no 'fien'" in refused(*words, "--oracle", f"{rules}:fien")


def test_rewards_add_up_with_their_weights(rules, tmp_path):
    """Parts are written before weighting: the sum is 2 of the one less half of the other."""
    words = [*rloo_words(tmp_path), "--reward", tiny_reward(), "--ignore_gate", "--reward_weight", 2]
    assert main([str(word) for word in (*words, "--rules", f"-0.5*{rules}:fine", f"{rules}:fine")]) == OK
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    model, half, whole = (row[f"rewards/{name}/mean"] for name in ("model", "fine", "fine#2"))
    assert half == whole > 0
    assert row["reward"] == pytest.approx(2 * model - 0.5 * half + whole)


@pytest.mark.usefixtures("no_model")
def test_streams_that_are_missing_or_unread(tmp_path, refused):
    data = write(tmp_path / "pairs.jsonl", pairs(2))
    words = ["policy", "--run", tmp_path / "run", "--algorithm.name", "dpo", "--data.path", data]
    assert "--streams.sft.path is missing" in refused(*words, "--algorithm.sft_coef", 1)
    assert "streams.sft: dpo with these settings reads no such stream" in refused(*words, "--streams.sft.path", data)


# Small verbs


def test_score_prints_or_writes_the_same_numbers(tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", demonstrations(3))
    words = ["score", "--reward", tiny_reward(), "--data.path", data, "--dtype", "float32"]
    assert main(words) == OK
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert main([*words, "--out", str(tmp_path / "out.jsonl")]) == OK
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == printed
    assert len(printed) == 3 and len({row["reward"] for row in printed}) == 3


def test_verify_and_models(capsys, refused, tmp_path):
    assert main(["verify", "--reward", tiny_reward()]) == OK
    assert "verified: plain transformers gives the saved model's rewards" in capsys.readouterr().out
    assert "its head is missing" in refused("verify", "--reward", tiny_model())
    assert main(["models"]) == OK
    assert "smollm2-135m-instruct" in capsys.readouterr().out


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("assay.cli.run_verb", interrupted)
    assert main(["reward"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from the last checkpoint\n"


def test_a_termination_is_an_interrupt(monkeypatch):
    """So that what runs beside is ended too."""
    monkeypatch.setattr("assay.cli.run_verb", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(10))
    assert main(["reward"]) == 130


@pytest.mark.parametrize(
    ("verb", "told"),
    [("policy", "programmatic rewards beside it"), ("reward", "opinions on one body"), ("evaluate", "what judges")],
)
def test_help_says_what_a_setting_is(verb, told, capsys):
    """Also of verbs whose fields depend on a name."""
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert told in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_exit_codes_are_the_documented_ones(capsys):
    main(["--help"])
    told = "0 done, 1 fault, 2 wrong input or settings, 3 refused by the gate, 130 interrupted"
    assert told in capsys.readouterr().out
    assert (OK, FAULT, WRONG_INPUT, REFUSED) == (0, 1, 2, 3)


FRAMED = """╭─ Value error ────────────╮
│ Error parsing --seed:    │
│ invalid literal 'x'      │
│ ──────────────────────── │
│ Argument helptext:       │
╰──────────────────────────╯
"""
PLAIN = " Value error \n ------- \n Error parsing --seed: \n invalid literal 'x' \n -------\n Argument helptext: \n"


@pytest.mark.parametrize("box", [FRAMED, PLAIN], ids=["UTF-8", "ASCII"])
def test_a_framed_message_becomes_one_line(box):
    assert first_sentence(box) == "Error parsing --seed: invalid literal 'x'"


@pytest.mark.parametrize("command", [["--version"], ["--help"]])
def test_the_package_runs_as_a_module_without_torch(command):
    code = f"import sys; sys.argv[1:] = {command!r}; import runpy\n" + (
        "try:\n    runpy.run_module('assay', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert not stop.code and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr
