"""At the edges: figures that are not known are not told as figures, and what cannot be used is one clear line."""

import json
import shutil

import pytest
from transformers import LlamaForSequenceClassification

from assay.cli import OK, REFUSED, main
from assay.report.run import RunDirectory, read_json
from assay.rewards.opening import names_of
from assay.settings import InputError
from assay.tokens.chat import Encoder
from tiny import demonstrations, pairs, prompts, random_network, save, tiny_model, tiny_reward, tokenizer, write


@pytest.fixture(scope="module")
def nan(tmp_path_factory):
    """A reward model whose every reward is NaN."""
    network = random_network(LlamaForSequenceClassification, seed=1)
    network.score.weight.data.fill_(float("nan"))
    return save(network, tmp_path_factory.mktemp("nan") / "reward")


def go(*words) -> int:
    return main([str(word) for word in words])


def evaluation(run, asked):
    words = ["evaluate", "--run", run, "--policy", tiny_model(), "--base", tiny_model(), "--prompts.path", asked]
    return [*words, "--sampling.max_tokens", 4, "--dtype", "float32"]


def test_a_reward_that_is_no_number_decides_nothing(nan, tmp_path, refused):
    asked, rows = write(tmp_path / "asked.jsonl", prompts(4)), write(tmp_path / "rows.jsonl", demonstrations(3))
    commands = [
        [*evaluation(tmp_path / "run", asked), "--reward", nan],
        [*evaluation(tmp_path / "run", asked), "--oracle", f"reward:{nan}"],
        ["score", "--reward", nan, "--data.path", rows],
        ["policy", "--run", tmp_path / "p", "--model", tiny_model(), "--data.path", asked, "--reward", tiny_reward(),
         "--ignore_gate", "true", "--oracle", f"reward:{nan}", "--watch.path", asked, "--sampling.max_tokens", 4],
    ]  # fmt: skip
    for command in commands:
        assert "a reward that is no finite number (the first, of " in refused(*command)


def test_an_audit_of_it_speaks_of_what_is_missing(nan, tmp_path, capsys):
    data = write(tmp_path / "pairs.jsonl", pairs(8))
    assert go("audit", "--run", tmp_path, "--reward", nan, "--data.path", data, "--dtype", "float32") == REFUSED
    said = capsys.readouterr().out
    assert "the reward is missing (NaN or infinite) in 100.0% of 8 pairs" in said and "wrong way round" not in said


def test_one_prompt_has_no_interval(tmp_path, capsys):
    asked = write(tmp_path / "asked.jsonl", prompts(1))
    assert go(*evaluation(tmp_path / "run", asked), "--oracle", "text") == OK
    assert "nan" not in capsys.readouterr().out
    assert go("report", "--run", tmp_path / "run") == OK
    told = (tmp_path / "run" / "report.html").read_text()
    assert "No interval was given" in told and "No clear change" not in told
    assert go("reward", "--run", tmp_path / "r", "--model", tiny_model(), "--held_out", 1, "--dtype", "float32",
              "--data.path", write(tmp_path / "pairs.jsonl", pairs(6))) == OK  # fmt: skip
    said = capsys.readouterr().out
    assert "too few for an interval" in said and "nan" not in said.replace(str(tmp_path), "")


def test_prompts_that_share_an_id_are_still_several(tmp_path):
    asked = write(tmp_path / "asked.jsonl", [{**row, "id": "same"} for row in prompts(4)])
    data = write(tmp_path / "pairs.jsonl", pairs(8))
    words = ["audit", "--run", tmp_path, "--reward", tiny_reward(), "--data.path", data, "--dtype", "float32"]
    words += ["--samples.prompts.path", asked, "--samples.model", tiny_model(), "--samples.num_answers", 2]
    assert go(*words, "--samples.sampling.max_tokens", 4) in (OK, REFUSED)
    found = read_json(tmp_path / "audit.json")
    assert found["counts"]["sample_prompts"] == 4
    assert {f["probe"] for f in found["findings"] if "best_of_n/reward" in f["probe"]} == {
        "best_of_n/reward/1",
        "best_of_n/reward/2",
    }


def test_texts_of_one_token_are_counted(tmp_path, capsys, refused):
    asked = write(tmp_path / "asked.jsonl", prompts(2))
    some = write(tmp_path / "some.jsonl", [{"text": "Hello"}, {"text": "Hello there, how are you?"}])
    assert go(*evaluation(tmp_path / "run", asked), "--oracle", "text", "--text.path", some) == OK
    assert "left out 1 of 2 texts" in capsys.readouterr().out
    none = write(tmp_path / "none.jsonl", [{"text": "Hello"}])
    said = refused(*evaluation(tmp_path / "run", asked), "--oracle", "text", "--text.path", none)
    assert "no text has two tokens or more" in said


def test_scores_of_what_fits_as_the_settings_say(tmp_path, capsys, refused):
    long = {"prompt": "Say it.", "completion": " ".join(["word"] * 400)}
    rows = write(tmp_path / "rows.jsonl", [*demonstrations(2), long])
    words = ["score", "--reward", tiny_reward(), "--data.path", rows, "--dtype", "float32"]
    said = refused(*words)
    assert f"{rows}: 1 of 3 records are longer than" in said and "--data.too_long skip" in said
    assert go(*words, "--data.too_long", "skip", "--out", tmp_path / "out.jsonl") == OK
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    assert "is a folder" in refused(*words, "--out", tmp_path)


def test_what_is_held_out_is_of_what_fits(tmp_path, capsys, refused, monkeypatch):
    """Whichever prompt is too long, one other is held out; and it is told before a model loads."""
    rows = pairs(6)
    words = ["reward", "--model", tiny_model(), "--held_out", 1, "--epochs", 0, "--dtype", "float32", "--verify=false"]
    for place in range(6):
        long = {**rows[place], "prompt": [{"role": "user", "content": "word " * 400}]}
        data = write(tmp_path / "pairs.jsonl", [*rows[:place], long, *rows[place + 1 :]])
        assert go(*words, "--run", tmp_path / f"{place}", "--data.path", data, "--data.too_long", "skip") == OK
        assert "training on 4 pairs; 1 pairs of other prompts are held out" in capsys.readouterr().out
    monkeypatch.setattr("assay.engine.load._load", None)
    assert "1 of 6 records are longer than 256 tokens" in refused(
        *words, "--run", tmp_path / "none", "--data.path", data
    )


def test_answers_that_nobody_should_imitate_have_scores_too(tmp_path, refused):
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "Hi.", "completion": "No.", "label": False}])
    assert go("score", "--reward", tiny_reward(), "--data.path", rows, "--dtype", "float32") == OK
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--algorithm.name", "sft"]
    assert "not one to imitate" in refused(*words, "--data.path", rows, lines=2)


def test_heads_that_drew_nothing_are_refused(tmp_path, refused):
    data = write(tmp_path / "pairs.jsonl", pairs(1))
    words = ["reward", "--run", tmp_path / "run", "--model", tiny_model(), "--data.path", data, "--held_out", 0]
    assert "drew none of 1 judgements for itself" in refused(*words, "--heads", 6)


def test_answers_that_are_all_alike_make_no_pairs(tmp_path, refused):
    asked = write(tmp_path / "asked.jsonl", prompts(2))
    words = ["collect", "--run", tmp_path / "run", "--model", tiny_model(), "--prompts.path", asked]
    assert "every pair of answers is identical" in refused(*words, "--sampling.top_k", 1, "--sampling.max_tokens", 4)


def test_numbers_that_no_file_can_carry_are_named_before_training(tmp_path, refused):
    rows = [{**row, "x": float("nan") if i == 2 else 1.0} for i, row in enumerate(pairs(4))]
    data = write(tmp_path / "pairs.jsonl", rows)
    words = ["reward", "--run", tmp_path / "run", "--model", tiny_model(), "--data.path", data]
    assert f"{data}:3: column 'x' holds nan" in refused(*words, lines=2)


def test_notes_that_are_not_whole_are_told_before_anything_is_computed(tmp_path, refused):
    asked, place = write(tmp_path / "asked.jsonl", prompts(2)), RunDirectory(tmp_path / "run")
    place.path.mkdir()
    words = [*evaluation(place.path, asked), "--oracle", "text"]
    place.config.write_text("")
    assert "config.yaml: expected a mapping" in refused(*words)
    place.config.unlink()
    place.provenance.write_text("[]")
    assert "provenance.json: not a JSON object" in refused(*words)
    place.provenance.write_text("")
    assert "provenance.json, line 1: not JSON" in refused(*words)
    assert "is a file: name a directory" in refused(*evaluation(asked, asked), "--oracle", "text")


def test_a_model_under_two_names_is_named_twice(tmp_path):
    other = tmp_path / "reward"
    shutil.copytree(tiny_reward(), other)
    with pytest.raises(InputError, match="is named twice"):
        names_of(f"{other},{tmp_path}/./reward")
    assert names_of(f"{other},{tiny_reward()}") == [str(other), tiny_reward()]


def deep(levels):
    found = "deep"
    for _ in range(levels):
        found = [found]
    return found


OWN = {"kind": "demonstration", "prompt": {"messages": [{"role": "user", "content": "Hi."}]},
       "response": [{"role": "assistant", "content": "Yes."}]}  # fmt: skip
ROWS = [
    ({**OWN, "meta": [1]}, "meta must be an object; got list"),
    ({**OWN, "meta": {"margin": "abc"}}, "margin must be a finite number; got 'abc'"),
    ({"prompt": "Hi.", "completion": "Yes.", "x": deep(600)}, "in one another, hundreds deep"),
]


@pytest.mark.parametrize(("row", "said"), ROWS, ids=[said for _, said in ROWS])
def test_rows_that_cannot_be_read(row, said, tmp_path, refused):
    path = write(tmp_path / "rows.jsonl", [row])
    assert said in refused("score", "--reward", tiny_reward(), "--data.path", path, lines=2)


def test_a_margin_too_large_for_a_number(tmp_path, refused):
    data = write(tmp_path / "pairs.jsonl", [{**pairs(1)[0], "margin": 10**401}])
    words = ["reward", "--run", tmp_path / "run", "--model", tiny_model(), "--data.path", data]
    assert "margin must be a finite number" in refused(*words, lines=2)


def test_a_template_that_refuses_a_conversation_is_told_of(tmp_path, refused):
    folder = tmp_path / "reward"
    shutil.copytree(tiny_reward(), folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    rows = write(tmp_path / "rows.jsonl", demonstrations(1))
    assert "the chat template refuses it: no such role" in refused("score", "--reward", folder, "--data.path", rows)


def test_what_was_saved_beside_the_weights_must_be_whole(tmp_path, refused):
    folder = tmp_path / "reward"
    shutil.copytree(tiny_reward(), folder)
    rows = write(tmp_path / "rows.jsonl", demonstrations(1))
    for text in ("", "[]"):
        (folder / "assay.json").write_text(text)
        assert "assay.json is not whole" in refused("score", "--reward", folder, "--data.path", rows)


def test_a_folder_that_is_no_data_set(tmp_path, refused):
    (tmp_path / "state.json").write_text(json.dumps({"step": 3}))
    said = refused("score", "--reward", tiny_reward(), "--data.path", tmp_path)
    assert "its state.json is not that of a data set" in said


PATHS = [
    ["score", "--reward", "R", "--data.path", "x" * 300],
    ["score", "--reward", "R", "--data.path", "D", "--config", "DIR"],
    ["score", "--reward", "x" * 300, "--data.path", "D"],
    ["score", "--reward", "~nosuchuser/x", "--data.path", "D"],
    ["score", "--reward", "R", "--data.path", "D", "--principles.path", "DIR", "--principles.told", "kind"],
    ["average", "--reward", "R,R2", "--out", "FILE"],
]


@pytest.mark.parametrize("words", PATHS, ids=range(len(PATHS)))
def test_paths_that_lead_nowhere_are_one_line(words, tmp_path, refused):
    second = tmp_path / "second"
    shutil.copytree(tiny_reward(), second)
    (tmp_path / "file").write_text("here")
    places = {"R": tiny_reward(), "R2": second, "DIR": tmp_path, "FILE": tmp_path / "file"}
    places["D"] = write(tmp_path / "rows.jsonl", demonstrations(1))
    told = [",".join(str(places.get(part, part)) for part in str(word).split(",")) for word in words]
    refused(*told)


def test_a_zero_byte_is_not_spoken():
    """No file of records can carry it."""
    words = Encoder(tokenizer())
    (zero,) = words.tokenizer("\0", add_special_tokens=False)["input_ids"]
    yes = words.tokenizer("Yes", add_special_tokens=False)["input_ids"]
    assert words.spoken([*yes, zero, *yes]) == "YesYes"
