"""assay collect with a judge: sampled pairs, imported ones, and what is said of the judge."""

import math

import pytest
import torch

from assay.cli import OK, WRONG_INPUT, main
from assay.feedback.read import read_comparisons
from assay.records import reply
from assay.report.run import read_json
from assay.rewards.judge import CRITERION, LanguageModel, open_judge
from tiny import demonstrations, pairs, prompts, tiny_model, write

COMMON = ["--dtype", "float32", "--judge", tiny_model(), "--model", tiny_model()]


def collect(run, *words):
    return main(["collect", "--run", str(run), *words, *COMMON])


def test_imported_pairs_are_labelled_again(tmp_path, capsys):
    old = {"annotator": "ann", "margin": 2.0, "shown_first": "rejected"}
    data = write(tmp_path / "pairs.jsonl", [{**row, **old} for row in pairs(6)])
    criterion = ["--criterion", "Be brief."]
    assert collect(tmp_path / "run", "--feedback.path", data, *criterion) == OK
    said = capsys.readouterr().out
    assert "order_agreement/" in said and "log-odds for being first" in said
    found = read_comparisons(tmp_path / "run" / "feedback.jsonl").records
    before = {c.prompt.id: c for c in read_comparisons(data).records}
    judge = open_judge(tiny_model(), criterion="Be brief.", dtype="float32")
    for made in found:
        pair = before[made.prompt.id]
        judged = judge.compare([pair.prompt], [pair.responses[0]], [pair.responses[1]])
        turned = made.responses != pair.responses  # files hold the preferred answer first
        log_odds = float(judged.log_odds[0]) * (-1 if turned else 1)
        assert made.preference == pytest.approx(1 / (1 + math.exp(-log_odds)), abs=1e-4)
        assert made.source == "judge" and made.annotator == tiny_model()
        assert not {"margin", "shown_first"} & made.meta.keys()  # they spoke of the old label
        assert made.meta["imported_annotator"] == "ann" and made.meta["criterion"] == "Be brief."
        assert made.meta["judge_log_odds"] == pytest.approx(judged.both[0].tolist(), abs=1e-4)
    told = read_json(tmp_path / "run" / "provenance.json")["collect"]
    agreement, bias = told["findings"]
    assert told["judge"] == tiny_model() and agreement["n"] == bias["n"] == 6


def test_sampled_pairs_are_labelled(tmp_path):
    asked = write(tmp_path / "prompts.jsonl", prompts(6))
    words = ["--prompts.path", asked, "--sampling.max_tokens", "5", "--num_answers", "4"]
    assert collect(tmp_path / "run", *words) == OK
    found = read_comparisons(tmp_path / "run" / "feedback.jsonl").records
    assert found and all(0 < c.preference < 1 and c.meta["criterion"] == CRITERION for c in found)


def test_a_judge_without_a_finite_opinion_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LanguageModel, "__call__", lambda self, questions: torch.full((len(questions),), torch.nan))
    data = write(tmp_path / "pairs.jsonl", pairs(3))
    assert collect(tmp_path / "run", "--feedback.path", data) == WRONG_INPUT
    assert "gives 3 of 3 answers a reward that is no finite number" in capsys.readouterr().err


def test_pairs_that_the_judge_cannot_read_are_refused_or_dropped(tmp_path, capsys):
    rows = pairs(3)
    rows[0]["chosen"] = [reply("word " * 250)[0].to_json()]
    data = write(tmp_path / "pairs.jsonl", rows)
    assert collect(tmp_path / "run", "--feedback.path", data) == WRONG_INPUT
    assert "1 of 3 records are longer than 256 tokens" in capsys.readouterr().err
    assert collect(tmp_path / "run", "--feedback.path", data, "--feedback.too_long", "skip") == OK
    assert len(read_comparisons(tmp_path / "run" / "feedback.jsonl").records) == 2


@pytest.mark.parametrize("judge", ["no-such-model", "http://localhost/v1"])
def test_a_judge_that_is_not_there_is_told_before_anything_is_sampled(tmp_path, judge, capsys):
    asked = write(tmp_path / "prompts.jsonl", prompts(6))
    words = ["collect", "--run", str(tmp_path / "run"), "--prompts.path", asked, "--judge", judge]
    assert main([*words, "--model", tiny_model()]) == WRONG_INPUT
    assert "model" in capsys.readouterr().err


def test_a_criterion_without_a_judge_is_an_error(tmp_path, capsys):
    data = write(tmp_path / "pairs.jsonl", demonstrations(2))
    assert main(["collect", "--run", str(tmp_path), "--feedback.path", data, "--criterion", "Be kind."]) == WRONG_INPUT
    assert "--judge" in capsys.readouterr().err


def principled(tmp_path):
    """Flags for pairs and principles."""
    data = write(tmp_path / "pairs.jsonl", pairs(12))
    told = [{"name": name, "text": f"It is {name}.", "negation": f"It is not {name}."} for name in ("brief", "kind")]
    return "--feedback.path", data, "--principles", write(tmp_path / "principles.jsonl", told)


def test_a_judge_that_only_looks_at_the_place_labels_nothing(tmp_path, capsys):
    assert collect(tmp_path / "run", *principled(tmp_path)) == WRONG_INPUT
    said = capsys.readouterr()
    assert "order_agreement/brief: 0.000" in said.out and "order_bias/kind" in said.out
    assert "has no opinion that both orders share" in said.err


def test_labels_under_principles(tmp_path, capsys, monkeypatch):
    """The judge is asked by each; both answers of a comparison carry the same drawn principles."""
    asked = []

    def opinions(judge, pairs, criteria):  # of somebody who sees the answers and not their places
        asked.extend(criteria)
        sizes = torch.tensor([[len(answer[0].content) for answer in pair.responses] for pair in pairs]).double()
        gap = sizes[:, 1] - sizes[:, 0]
        return torch.stack([gap, gap % 3 - 1], 1)[..., None].expand(-1, -1, 2)

    monkeypatch.setattr("assay.stages.judging.opinions", opinions)
    words = principled(tmp_path)
    assert collect(tmp_path / "run", *words) == OK
    said = capsys.readouterr().out
    assert "order_agreement/brief" in said and "order_bias/kind" in said
    assert asked == ["It is brief.", "It is kind."]
    made = read_comparisons(tmp_path / "run" / "feedback.jsonl").records
    assert 12 < len(made) <= 48  # up to four labels a pair
    for one in made:
        rules = [answer[-1].content for answer in one.responses]
        assert rules[0] == rules[1]
        for name, sign in zip(one.meta["principles"], one.meta["signs"], strict=True):
            assert f"It is {'' if sign > 0 else 'not '}{name}." in rules[0]
    assert collect(tmp_path / "again", *words) == OK
    paths = [tmp_path / name / "feedback.jsonl" for name in ("run", "again")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    train = ["reward", "--run", str(tmp_path / "run"), "--model", tiny_model(), "--held_out", "0"]
    assert main([*train, "--data.path", str(paths[0]), "--dtype", "float32"]) == OK


def test_plain_text_is_refused_before_the_judge_is_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("assay.stages.judging.open_judge", None)
    plain = [{"prompt": f"Name {i}.", "chosen": "Yes.", "rejected": "No."} for i in range(3)]
    words = principled(tmp_path)
    write(tmp_path / "pairs.jsonl", plain)
    assert collect(tmp_path / "run", *words) == WRONG_INPUT
    assert "3 of 3 pairs are plain text" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--criterion", "Be kind.", "--judge", "smollm2-135m-instruct"), ()])
def test_principles_need_a_judge_and_no_other_criterion(tmp_path, capsys, words):
    data = write(tmp_path / "pairs.jsonl", demonstrations(2))
    told = write(tmp_path / "principles.jsonl", [{"name": "brief", "text": "It is brief.", "negation": "It is long."}])
    common = ["collect", "--run", str(tmp_path), "--feedback.path", data, "--principles", told]
    assert main([*common, *words]) == WRONG_INPUT
    assert "--principles: a judge is asked by each of them" in capsys.readouterr().err
