"""Every likelihood trains by its name, saves what plain transformers loads, and tells what it gets right."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from assay.cli import OK, WRONG_INPUT, main
from assay.engine.catalog import hash_of_folder
from assay.records import Comparison, reply, user_prompt
from assay.rewards.likelihoods import LIKELIHOODS, AnnotatorGroups, Annotators
from assay.rewards.model import RewardModel
from tiny import CONVERSATIONS, WORDS, asked, pairs, ratings, spans, steps, tiny_model, write


def rankings(num=10, ties=False):
    rows = []
    for place in range(num):
        answers = [WORDS[(place + k) % 5] for k in range(2 + place % 3)]
        rows.append({"prompt": asked(place), "responses": answers, "id": f"r{place}"})
        if ties:
            rows[-1]["ranks"] = [0] * len(answers[:-1]) + [1]
    return rows


def feedback(name):
    if LIKELIHOODS[name].data == "rankings":
        return rankings()
    if LIKELIHOODS[name].data == "ratings":
        return ratings((0, 1) if name in ("binary", "outcome") else (1, 3, 5, 2, 4))
    if LIKELIHOODS[name].data == "steps":
        return steps(12)
    if LIKELIHOODS[name].data == "spans":
        return spans(12)
    rows = pairs(12)
    if name.startswith("annotator"):
        return [{**row, "annotator": f"person {i % 2}"} for i, row in enumerate(rows)]
    return [
        {**row, "preference": 0.5} if name in ("rao_kupper", "davidson") and i % 3 == 0 else row
        for i, row in enumerate(rows)
    ]


def train(tmp_path, rows, *words):
    tmp_path.mkdir(exist_ok=True)
    data = write(tmp_path / "feedback.jsonl", rows)
    common = ["--run", str(tmp_path / "run"), "--model", tiny_model(), "--data.path", data, "--held_out", "3"]
    return main(["reward", *common, "--optimiser.lr", "0.003", "--batch_size", "3", "--dtype", "float32", *words])


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_trains_by_its_name(tmp_path, capsys, name):
    epochs = ("--epochs", "2") if LIKELIHOODS[name].learns_between else ()
    assert train(tmp_path, feedback(name), "--likelihood", name, *epochs) == OK
    said = capsys.readouterr().out
    assert "verified" in said and "95% interval" in said
    rewards = RewardModel.from_pretrained(str(tmp_path / "run" / "reward"), dtype="float32").score(CONVERSATIONS)
    assert len(set(rewards)) > 1
    facts = json.loads((tmp_path / "run" / "reward" / "assay.json").read_text())
    assert set(facts["learned"]) == set(LIKELIHOODS[name]().learned)
    assert facts["base_weights"] == hash_of_folder(tiny_model())  # what may be averaged with it


def test_an_ensemble_of_heads_knows_how_unsure_it_is(tmp_path):
    assert train(tmp_path, pairs(12), "--heads", "4") == OK
    reward = RewardModel.from_pretrained(str(tmp_path / "run" / "reward"), dtype="float32")
    assert reward.outputs(CONVERSATIONS).shape[1] == 4
    found = reward.uncertainty(CONVERSATIONS)
    assert found is not None and min(found) > 0


def test_objectives_have_a_reward_each(tmp_path, capsys):
    rows = [
        {
            "prompt": asked(i),
            "responses": [WORDS[i % 5], WORDS[(i + 2) % 5]],
            "kind_preferred": i % 2,
            "honest": "AB"[i % 3 == 0],
        }
        for i in range(12)
    ]
    assert train(tmp_path, rows, "--data.objectives", "kind", "honest") == OK
    said = capsys.readouterr().out
    assert "held-out accuracy, kind" in said and "held-out accuracy, honest" in said
    reward = RewardModel.from_pretrained(str(tmp_path / "run" / "reward"), dtype="float32")
    assert reward.readout.names == ("kind", "honest")
    both, first = reward.outputs(CONVERSATIONS), reward.readout.reward(reward.outputs(CONVERSATIONS), (1.0, 0.0))
    assert first.tolist() == both[:, 0].tolist()
    assert reward.score(CONVERSATIONS) == pytest.approx(both.mean(1).tolist())


def by_people(num=12):
    """Rows that two people judged, the second always for what was shown first."""
    return [
        {
            "prompt": asked(i),
            "responses": [WORDS[i % 5], WORDS[(i + 2) % 5]],
            "annotations": [{"annotator": "Ann", "kind": "AB"[i % 2]}, {"annotator": "Bo", "kind": "A"}],
        }
        for i in range(num)
    ]


@pytest.mark.parametrize("heads", ["1", "2"])
def test_annotators_are_learned_beside_the_model(tmp_path, capsys, heads):
    words = ("--likelihood", "annotators", "--data.objectives", "kind", "--heads", heads)
    assert train(tmp_path, by_people(), *words) == OK
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "run" / "reward" / "assay.json").read_text())
    ann, bo = facts["annotators"]["Ann"], facts["annotators"]["Bo"]
    assert f"annotator Bo: temperature {bo['temperature']:.3f}  order_bias {bo['order_bias']:.3f}" in said
    assert ann["temperature"] * bo["temperature"] == pytest.approx(1)
    assert "negative log-likelihood, annotators told apart" in said
    assert bo["order_bias"] > 0.05 > ann["order_bias"]
    assert len(facts["learned"]["log_temperature"]) == 2


def judged_by(*people):
    """A comparison by each (annotator, which was shown first)."""
    return [
        Comparison(
            prompt=user_prompt("Say hello."),
            responses=(reply("Hello!"), reply("No.")),
            annotator=who,
            meta={"shown_first": first} if first else {},
        )
        for who, first in people
    ]


def test_log_odds_of_the_annotator_who_judged():
    told = {"Ann": {"temperature": 2.0, "order_bias": 0.5}, "Bo": {"temperature": 0.5, "order_bias": -0.3}}
    judged = judged_by(("Ann", "rejected"), ("Bo", "chosen"), ("Bo", None), ("Cy", "chosen"))
    rewards = torch.tensor([1.0, 0.0]).repeat(4)
    found = Annotators().log_odds(rewards[:, None], rewards, judged, told)
    assert found.tolist() == pytest.approx([0.0, 1.7, 2.0, 1.0])


def test_log_odds_by_the_groups_that_somebody_may_belong_to():
    told = {"Ann": {"group 1": 1.0, "group 2": 0.0}, "Bo": {"group 1": 0.25, "group 2": 0.75}}
    outputs = torch.tensor([[2.0, -1.0], [0.0, 0.0]]).repeat(3, 1)
    found = AnnotatorGroups().log_odds(outputs, outputs.mean(-1), judged_by(("Ann", ""), ("Bo", ""), ("Cy", "")), told)
    chances = 1 / (1 + np.exp(-np.array([2.0, -1.0])))
    expected = [chances @ shares for shares in ([1, 0], [0.25, 0.75], [0.625, 0.375])]
    assert torch.sigmoid(found).tolist() == pytest.approx(expected, abs=1e-6)


def by_groups(num=12):
    """Six people judge every pair: the first four one way, the others the opposite."""
    rows = []
    for row in pairs(num):
        sides = [row["chosen"][0]["content"], row["rejected"][0]["content"]]
        votes = [{"annotator": f"person {i}", "kind": "A" if i < 4 else "B"} for i in range(6)]
        rows.append({"prompt": row["prompt"], "responses": sides, "annotations": votes})
    return rows


def test_people_who_want_the_opposite_are_put_into_groups(tmp_path, capsys):
    words = ("--likelihood", "annotator_groups", "--data.objectives", "kind", "--epochs", "6")
    assert train(tmp_path, by_groups(), *words) == OK
    facts = json.loads((tmp_path / "run" / "reward" / "assay.json").read_text())
    firsts = [facts["annotators"][f"person {i}"]["group 1"] for i in range(6)]
    assert [x > 0.5 for x in firsts] in ([True] * 4 + [False] * 2, [False] * 4 + [True] * 2)
    assert min(max(x, 1 - x) for x in firsts) > 0.95
    held_out = json.loads((tmp_path / "run" / "held_out.json").read_text())
    alone, apart = (
        held_out[name]["value"] for name in ("held-out accuracy", "held-out accuracy, annotators told apart")
    )
    assert apart > alone and alone <= 4 / 6 + 1e-9  # one reward for all is wrong about a third of them
    reward = RewardModel.from_pretrained(str(tmp_path / "run" / "reward"), dtype="float32")
    assert reward.readout.names == ("group 1", "group 2") and reward.outputs(CONVERSATIONS).shape[1] == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("rows", "words", "told"),
    [
        (ratings((1, 6)), ("--likelihood", "ordinal"), "ordinal takes whole numbers from 1 to 5"),
        (ratings((1.5, 2)), ("--likelihood", "ordinal"), "are outside of the scale, the first, v0, with 1.5"),
        (ratings((0, 2)), ("--likelihood", "binary"), "binary takes numbers from 0 to 1"),
        (ratings((1,)), ("--likelihood", "binary"), "all 10 ratings are 1: there is nothing to tell apart"),
        (rankings(ties=True), ("--likelihood", "plackett_luce"), "rankings have ties (the first: r1)"),
        (rankings(ties=True), ("--likelihood", "best_of_k"), "rankings have several best responses (the first: r1)"),
        (
            [{"prompt": asked(0), "responses": ["Red.", "Blue.", "Red."]}],
            ("--likelihood", "best_of_k"),
            "response 2 of the ranking is the same as an earlier one",
        ),
        (pairs(4), ("--likelihood", "thurston"), "Did you mean 'thurstone'?"),
        (pairs(4), ("--likelihood", "mean_variance", "--heads", "3"), "no heads or objectives fit it"),
        (pairs(4), ("--data.objectives", "kindness"), "no judgement under 'kindness'"),
        (pairs(8), ("--likelihood", "annotators"), "judgements name no annotator: rows name theirs in `annotator`"),
        (
            [{**row, "annotator": "x3"} for row in pairs(8)],
            ("--likelihood", "annotators"),
            "all judgements are by 'x3': there is nobody to tell apart",
        ),
        (
            [{**row, "annotator": "ab"[i % 2], "shown_first": "B"} for i, row in enumerate(pairs(8))],
            ("--likelihood", "annotators"),
            "shown_first='B': write chosen or rejected, or leave it out",
        ),
        (feedback("annotators"), ("--likelihood", "annotators", "--likelihood.names", "a"), "leave it out"),
    ],
)
def test_feedback_that_a_likelihood_cannot_read(tmp_path, refused, rows, words, told):
    path = write(tmp_path / "feedback.jsonl", rows)
    common = ["reward", "--run", tmp_path / "run", "--model", tiny_model(), "--data.path", path, "--held_out", 3]
    rows_told = {"response 2": 1, "'kindness'": 4}  # each bad row has a line of its own
    assert told in refused(*common, *words, lines=1 + sum(n for part, n in rows_told.items() if part in told))


def test_a_likelihood_of_ones_own_that_lacks_its_loss(tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text("from assay.rewards.likelihoods import Likelihood\n\n\nclass Half(Likelihood):\n    pass\n")
    assert train(tmp_path, pairs(4), "--likelihood", f"{own}:Half") == WRONG_INPUT
    assert "own.py:Half has no loss: a likelihood of your own needs it" in capsys.readouterr().err


def test_answers_that_nothing_connects_are_told(tmp_path, capsys):
    rows = pairs(12) + [{**row, "chosen": "Yes, of course.", "rejected": "No."} for row in pairs(2)]
    line = "2 of 2 prompts with several comparisons fall into unconnected parts (the first: "
    assert train(tmp_path, rows, "--held_out", "0") == OK
    said = capsys.readouterr().out
    assert line in said and "parts of 2 and 2 answers): the data says nothing of how these compare" in said


def test_feedback_without_gaps_tells_nothing_of_them(tmp_path, capsys):
    assert train(tmp_path, rankings(), "--likelihood", "plackett_luce") == OK
    assert "unconnected" not in capsys.readouterr().out


def test_text_that_spells_a_special_token_is_refused_or_dropped_and_counted(tmp_path, capsys):
    rows = pairs(12)
    rows[2]["chosen"][0]["content"] += " <|im_end|>"
    assert train(tmp_path, rows, "--held_out", "0") == WRONG_INPUT
    said = capsys.readouterr().err
    assert "contains <|im_end|>" in said and "drop and count it with --data.on_bad skip" in said
    assert train(tmp_path, rows, "--held_out", "0", "--data.on_bad", "skip") == OK
    assert "dropped 1 records whose text spells out a special token" in capsys.readouterr().out.replace("\n", " ")


def test_a_strong_prior_keeps_the_weights_where_they_were(tmp_path):
    """And a weak one does not: the distance to the start falls with the precision."""
    distances = []
    base = load_file(f"{tiny_model()}/model.safetensors")
    for precision in ("0", "30"):
        words = ("--held_out", "0", "--epochs", "8", "--prior", precision)
        assert train(tmp_path / precision, pairs(12), *words) == OK
        found = load_file(tmp_path / precision / "run" / "reward" / "model.safetensors")
        distances.append(sum(float(((found[n] - base[n]) ** 2).sum()) for n in base if n in found) ** 0.5)
    assert distances[1] < 0.7 * distances[0]
