"""What improves a reward model, from the command line: labels that move, labels of its own, a language loss, epochs."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from assay.batch import ModelOutput, TokenBatch
from assay.cli import OK, WRONG_INPUT, main
from assay.report.run import RunDirectory
from assay.rewards.likelihoods import LIKELIHOODS
from assay.train.loop import Training
from tiny import pairs, ratings, tiny_model, write

EPOCHS = 3
NEITHER = [{"role": "assistant", "content": "Neither."}]


def train(run, rows, *words):
    data = write(run.parent / f"{run.name}.jsonl", rows)
    common = [
        "--run",
        str(run),
        "--model",
        tiny_model(),
        "--data.path",
        data,
        "--held_out",
        "3",
        "--epochs",
        str(EPOCHS),
    ]
    return main(["reward", *common, "--optimiser.lr", "0.003", "--batch_size", "3", "--dtype", "float32", *words])


def weights(run):
    return load_file(run / "reward" / "model.safetensors")


def labels(run):
    return [json.loads(line)["preference"] for line in (run / "labels.jsonl").read_text().splitlines()]


def test_labels_move_to_what_the_model_believes(tmp_path):
    assert train(tmp_path / "ids", pairs(12), "--ids.beta", "0.7") == OK
    moved = labels(tmp_path / "ids")
    assert len(moved) == 9 and all(0 < label < 1 for label in moved)
    assert train(tmp_path / "step", pairs(12), "--ids.beta", "0.1", "--ids.update", "step") == OK
    assert all(0.5 < label < 1 for label in labels(tmp_path / "step"))


def test_labels_that_move_need_an_id_each(tmp_path, capsys):
    rows = [{**row, "id": "same" if i in (3, 7) else f"p{i}"} for i, row in enumerate(pairs(12))]
    assert train(tmp_path / "ids", rows, "--ids.beta", "0.7", "--held_out", "0") == WRONG_INPUT
    assert "2 comparisons have the id 'same'" in capsys.readouterr().err


def test_a_beta_that_moves_nothing_is_maximum_likelihood(tmp_path):
    """From the same head, as labels of beta > 0 start at a head of 0."""
    assert train(tmp_path / "ids", pairs(12), "--ids.beta", "1e-30") == OK
    assert set(labels(tmp_path / "ids")) == {1.0}
    rows = RunDirectory(tmp_path / "ids").read_metrics("reward")
    assert rows[0]["nll"] == pytest.approx(0.693147, abs=1e-5)  # no opinion


class Died(BaseException):
    """What a test raises where a process would be killed."""


@pytest.mark.parametrize("update", ["epoch", "step"])
@pytest.mark.parametrize("step", [3, 5, 6, 8])
def test_a_killed_run_resumes_with_its_labels(tmp_path, monkeypatch, step, update):
    """9 pairs, 3 a step, 3 epochs: steps 3 and 6 end epochs; checkpoints every 3 steps."""
    words = ("--ids.beta", "0.4", "--ids.update", update, "--validation", "2", "--checkpoints.every", "3")
    assert train(tmp_path / "whole", pairs(14), *words) == OK
    real = Training.one_step

    def one_step(self):
        if self.step == step:
            raise Died
        return real(self)

    monkeypatch.setattr(Training, "one_step", one_step)
    with pytest.raises(Died):
        train(tmp_path / "torn", pairs(14), *words)
    monkeypatch.setattr(Training, "one_step", real)
    assert train(tmp_path / "torn", pairs(14), *words) == OK
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "torn")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert labels(tmp_path / "whole") == labels(tmp_path / "torn")
    found = [RunDirectory(tmp_path / name).read_metrics("reward validation") for name in ("whole", "torn")]
    assert found[0] == found[1] and [row["step"] for row in found[0]] == [3, 6, 9]


def test_the_epoch_of_least_validation_loss_is_kept(tmp_path, capsys):
    """Labels without sense: what is learned by heart makes other pairs worse."""
    turned = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt"}
    rows = [{turned[k]: v for k, v in row.items()} if i % 3 else row for i, row in enumerate(pairs(24))]
    words = (
        "--validation",
        "4",
        "--optimiser.lr",
        "0.01",
        "--optimiser.schedule",
        "constant",
        "--optimiser.warmup",
        "0",
    )
    assert train(tmp_path / "run", rows, *words) == OK
    found = RunDirectory(tmp_path / "run").read_metrics("reward validation")
    best = min(found, key=lambda row: row["loss"])
    assert best["step"] != found[-1]["step"], "nothing was overfitted, so the test shows nothing"
    assert f"kept the state after step {best['step']}" in capsys.readouterr().out
    epochs = str(1 + [row["step"] for row in found].index(best["step"]))
    assert train(tmp_path / "short", rows, *words, "--epochs", epochs) == OK
    first, second = weights(tmp_path / "run"), weights(tmp_path / "short")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_language_loss_beside_the_rewards(tmp_path, tied, rank):
    words = ("--model", tiny_model(tied=tied), "--language_coef", "1", "--lora.rank", str(rank), "--heads", "2")
    assert train(tmp_path / "run", pairs(12), *words) == OK
    rows = RunDirectory(tmp_path / "run").read_metrics("reward")
    assert rows[-1]["language_nll"] < rows[0]["language_nll"]
    for row in rows:
        assert row["loss"] >= row["language_nll"]
    assert not any("language" in name or "lm_head" in name for name in weights(tmp_path / "run"))


def test_a_model_that_labels_pairs_itself(tmp_path, capsys):
    words = ("--labelled", "0.4", "--ser.min_selected", "1", "--ser.status", "union", "--ser.max_loops", "2")
    assert train(tmp_path / "run", pairs(36), *words) == OK
    said = capsys.readouterr().out
    assert "loop 1: " in said and "of the labels right" in said
    told = json.loads((tmp_path / "run" / "ser.json").read_text())
    assert [loop["loop"] for loop in told["loops"]] == list(range(len(told["loops"])))
    assert len(told["loops"]) > 1
    before = weights(tmp_path / "run")
    assert train(tmp_path / "run", pairs(36), *words) == OK  # all fits are kept: nothing is trained again
    after = weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_too_few_sure_pairs_leave_the_model_as_it_was(tmp_path, capsys):
    assert train(tmp_path / "run", pairs(36), "--labelled", "0.4", "--ser.min_selected", "1000") == OK
    assert "loop 1 found fewer than 1000 sure pairs" in capsys.readouterr().out
    told = json.loads((tmp_path / "run" / "ser.json").read_text())
    assert len(told["loops"]) == 1


def test_pairs_without_labels_from_a_file(tmp_path, capsys):
    rows = [{"prompt": row["prompt"], "responses": [row["rejected"], row["chosen"], NEITHER]} for row in pairs(8)]
    path = write(tmp_path / "unlabelled.jsonl", rows)
    words = ("--unlabelled.path", path, "--ser.min_selected", "1", "--ser.status", "union", "--ser.warm_start", "false")
    assert train(tmp_path / "run", pairs(12), *words) == OK
    said = capsys.readouterr().out
    assert "of 24 pairs by union" in said and "labels right" not in said


def test_pairs_of_two_sources_are_told_apart(tmp_path, capsys):
    """Where some have labels that are set aside and others never had any, no share of right ones is told; pairs that
    are too long are dropped as the settings of their own file say.
    """
    long = " ".join(["word"] * 300)
    rows = [{"prompt": row["prompt"], "responses": [row["rejected"], row["chosen"]]} for row in pairs(6)]
    rows.append({"prompt": rows[0]["prompt"], "responses": [NEITHER, [{"role": "assistant", "content": long}]]})
    path = write(tmp_path / "unlabelled.jsonl", rows)
    words = ["--unlabelled.path", path, "--labelled", "0.5", "--ser.min_selected", "1", "--ser.status", "union"]
    assert train(tmp_path / "one", pairs(12), *words) == WRONG_INPUT
    assert f"{path}: 1 of 7 records are longer" in (said := capsys.readouterr().err)
    assert "--unlabelled.too_long skip" in said
    assert train(tmp_path / "other", pairs(12), *words, "--unlabelled.too_long", "skip") == OK
    said = capsys.readouterr().out
    assert "loop 1: " in said and "nan" not in said and "labels right" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--ids.beta", "0.5", "--likelihood", "regression"), "--ids.beta needs comparisons"),
        (("--language_coef", "1", "--likelihood", "regression"), "--language_coef needs comparisons"),
        (("--labelled", "0.5", "--likelihood", "regression"), "--labelled needs comparisons"),
        (("--ids.beta", "1.5"), "ids.beta must lie in [0, 1]"),
        (("--ids.beta", "0.5", "--likelihood.label_smoothing", "0.1"), "would pull every belief"),
        (("--labelled", "0.5", "--validation", "2"), "leave --validation out"),
        (("--ids.beta", "0.5", "--likelihood", "davidson"), "log-odds, which it is not for davidson"),
        (("--labelled", "0.5", "--likelihood", "annotators"), "--labelled takes a difference of rewards for log-odds"),
        (("--unlabelled.path", "x", "--likelihood", "annotator_groups"), "--unlabelled.path takes a difference"),
        (("--unlabelled.path", "x", "--data.objectives", "a", "b"), "--unlabelled.path with several --data.objectives"),
        (("--labelled", "0.5", "--data.objectives", "a", "b"), "--labelled with several --data.objectives"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, capsys, words, told):
    rows = ratings((1, 3, 5)) if "regression" in words else pairs(12)
    assert train(tmp_path / "run", rows, *words) == WRONG_INPUT
    assert told in capsys.readouterr().err


def test_margins_that_nothing_reads_are_told_and_moving_labels_refuse_them(tmp_path, capsys):
    rows = [{**row, "margin": 1.0} for row in pairs(12)]
    assert train(tmp_path / "ids", rows, "--ids.beta", "0.5") == WRONG_INPUT
    assert "12 comparisons have a margin" in capsys.readouterr().err
    for name, told in (("thurstone", True), ("bradley_terry", False), ("token_bradley_terry", False)):
        assert train(tmp_path / name, rows, "--likelihood", name) == OK
        assert ("12 margins are not read: thurstone" in capsys.readouterr().out) is told


def test_a_margin_moves_rewards_at_tokens_further_apart():
    chosen, rejected = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[0.5], [0.5]]])
    out = ModelOutput(token_outputs=torch.cat([chosen, rejected]))
    batch = TokenBatch(ids=torch.zeros(2, 2, dtype=torch.long), mask=torch.ones(2, 2, dtype=torch.bool))
    likelihood = LIKELIHOODS["token_bradley_terry"](centring_coef=0.0)
    plain, told = (likelihood.loss(out, b)[0] for b in (batch, batch.fill(margin=torch.tensor([1.0]))))
    assert plain.tolist() == pytest.approx([math.log(1 + math.exp(-1))])
    assert told.tolist() == pytest.approx([math.log(2)])  # a difference of 1, all of it the margin's


def test_figures_that_read_a_difference_as_log_odds_are_only_of_those_that_mean_it(tmp_path, capsys):
    for name, means in (("bradley_terry", True), ("categorical", False), ("davidson", False)):
        assert train(tmp_path / name, pairs(12), "--likelihood", name) == OK
        said = capsys.readouterr().out
        assert "held-out accuracy" in said and ("negative log-likelihood" in said) is means
