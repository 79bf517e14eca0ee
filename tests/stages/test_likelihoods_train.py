"""Every likelihood trains by its name, saves what plain transformers loads, and tells what it gets right."""

import json

import pytest

from assay.cli import OK, WRONG_INPUT, main
from assay.rewards.likelihoods import LIKELIHOODS
from assay.rewards.model import RewardModel
from assay.stages.common import hash_of_folder
from tiny import CONVERSATIONS, pairs, tiny_model, write

WORDS = ("Red.", "Blue, I would say.", "It depends on the light.", "No.", "Green and a little yellow.")


def asked(place):
    return [{"role": "user", "content": f"Name colour number {place}."}]


def rankings(num=10, ties=False):
    rows = []
    for place in range(num):
        answers = [WORDS[(place + k) % 5] for k in range(2 + place % 3)]
        rows.append({"prompt": asked(place), "responses": answers, "id": f"r{place}"})
        if ties:
            rows[-1]["ranks"] = [0] * len(answers[:-1]) + [1]
    return rows


def ratings(values, num=10):
    return [
        {"prompt": asked(place), "response": WORDS[place % 5], "rating": values[place % len(values)], "id": f"v{place}"}
        for place in range(num)
    ]


def feedback(name):
    if LIKELIHOODS[name].data == "rankings":
        return rankings()
    if LIKELIHOODS[name].data == "ratings":
        return ratings((0, 1) if name == "binary" else (1, 3, 5, 2, 4))
    rows = pairs(12)
    return [
        {**row, "preference": 0.5} if name in ("rao_kupper", "davidson") and i % 3 == 0 else row
        for i, row in enumerate(rows)
    ]


def train(tmp_path, rows, *words):
    data = write(tmp_path / "feedback.jsonl", rows)
    common = ["--run", str(tmp_path / "run"), "--model", tiny_model(), "--data.path", data, "--held_out", "3"]
    return main(["reward", *common, "--optimiser.lr", "0.003", "--batch_size", "3", "--dtype", "float32", *words])


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_trains_by_its_name(tmp_path, capsys, name):
    assert train(tmp_path, feedback(name), "--likelihood", name) == OK
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


@pytest.mark.parametrize(
    ("rows", "words", "told"),
    [
        (ratings((1, 6)), ("--likelihood", "ordinal"), "ordinal takes whole numbers from 1 to 5"),
        (ratings((1.5, 2)), ("--likelihood", "ordinal"), "are outside of the scale, the first, v0, with 1.5"),
        (ratings((0, 2)), ("--likelihood", "binary"), "binary takes numbers from 0 to 1"),
        (ratings((1,)), ("--likelihood", "binary"), "all 10 ratings are 1: there is nothing to tell apart"),
        (rankings(ties=True), ("--likelihood", "plackett_luce"), "rankings have ties (the first: r1)"),
        (
            [{"prompt": asked(0), "responses": ["Red.", "Blue.", "Red."]}],
            ("--likelihood", "best_of_k"),
            "response 2 of the ranking is the same as an earlier one",
        ),
        (pairs(4), ("--likelihood", "thurston"), "Did you mean 'thurstone'?"),
        (pairs(4), ("--likelihood", "mean_variance", "--heads", "3"), "no heads or objectives fit it"),
        (pairs(4), ("--data.objectives", "kindness"), "no judgement under 'kindness'"),
    ],
)
def test_feedback_that_a_likelihood_cannot_read(tmp_path, capsys, rows, words, told):
    assert train(tmp_path, rows, *words) == WRONG_INPUT
    assert told in capsys.readouterr().err


def test_a_likelihood_of_ones_own_that_lacks_its_loss(tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text("from assay.rewards.likelihoods import Likelihood\n\n\nclass Half(Likelihood):\n    pass\n")
    assert train(tmp_path, pairs(4), "--likelihood", f"{own}:Half") == WRONG_INPUT
    assert "own.py:Half has no loss: a likelihood of your own needs it" in capsys.readouterr().err
