"""Rewards that are told what to judge by: the text they see, who shares principles, policies by settings alone."""

import json

import pytest
from safetensors.torch import load_file

from assay.cli import OK, REFUSED, WRONG_INPUT, main
from assay.records import reply, user_prompt
from assay.rewards.instructed import Instructed, PrincipleSettings
from assay.rewards.model import RewardModel
from assay.settings import InputError
from assay.train.loop import Training
from tiny import CONTEXT, PROMPTS, demonstrations, pairs, prompts, tiny_model, tiny_reward, write

RULES = [
    {"name": "brief", "text": "It is brief.", "negation": "It rambles."},
    {"name": "kind", "text": "It is kind.", "negation": "It is rude.", "weight": 2.0, "tags": ["chat"]},
    {"name": "exact", "text": "It states facts that can be checked.", "negation": "It is vague."},
]


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "rules.jsonl", RULES)


def told(path, **settings):
    sampler = PrincipleSettings(path=path, **settings).sampler()
    return Instructed(RewardModel.from_pretrained(tiny_reward(), dtype="float32"), sampler)


def test_the_model_sees_what_it_judges_by(path):
    reward = told(path, told=("brief", "not:kind"))
    encoded = reward.encode((PROMPTS[0], reply("Blue.")))
    text = reward.encoder.tokenizer.decode([*encoded.trunk, *encoded.ids])
    assert "- It is brief.\n- It is rude." in text and "Blue." in text
    (by_hand,) = reward.inner.score_encoded([encoded])
    assert reward.score([(PROMPTS[0], reply("Blue."))]) == [by_hand]
    assert told(path, told=("kind",)).score([(PROMPTS[0], reply("Blue."))]) != [by_hand]


def test_answers_to_one_prompt_are_judged_by_the_same_principles(path):
    reward = told(path, told=("exact",), num=1)
    drawn = [tuple(p.name for p, _ in reward.told(prompt)) for prompt in PROMPTS for _ in range(3)]
    assert all(drawn[i] == drawn[i + 1] == drawn[i + 2] for i in range(0, len(drawn), 3))
    assert {names[0] for names in drawn} == {"brief", "kind"} and {names[1] for names in drawn} == {"exact"}
    assert reward.num_drawn == len(PROMPTS)


def test_drawing_goes_on_where_it_stood(path):
    first, second = told(path, num=2), told(path, num=2)
    everything = [first.told(prompt) for prompt in PROMPTS]
    second.num_drawn = 5
    assert [second.told(prompt) for prompt in PROMPTS[5:]] == everything[5:]


def test_room_is_what_the_longest_principles_leave(path):
    reward = told(path, told=("exact",), num=1)
    added = [
        told(path, told=("exact", other)).encode((user_prompt("?"), reply("!"))).num_tokens
        for other in ("brief", "kind")
    ]
    alone = reward.inner.encode((user_prompt("?"), reply("!"))).num_tokens
    assert reward.context == CONTEXT and reward.room == CONTEXT - (max(added) - alone)


def test_another_batch_is_drawn_for_anew(path):
    """Also where it begins with the prompt that the last one ended with, as a resumed run must find it."""
    first, second = told(path, num=1), told(path, num=1)
    first.told(PROMPTS[0])
    second.num_drawn = first.num_drawn
    for reward in (first, second):
        reward.anew()
        reward.told(PROMPTS[0])
    assert first.num_drawn == second.num_drawn == 2 and first.told(PROMPTS[0]) == second.told(PROMPTS[0])


def test_the_gate_asks_for_an_audit_under_the_same_principles(tmp_path, path, capsys):
    """What a reward was audited for with one principle says nothing of its opposite."""
    feedback = write(tmp_path / "pairs.jsonl", pairs(12))
    told = ["--principles.path", path, "--principles.told"]
    words = ["--run", str(tmp_path / "run"), "--reward", tiny_reward(), "--data.path", feedback, "--dtype", "float32"]
    assert main(["audit", *words, *told, "kind"]) == REFUSED  # a reward of random weights
    for name, said in (("kind", "the gate refuses"), ("not:kind", "speaks of another reward")):
        capsys.readouterr()
        assert main(["policy", *words, *told, name, "--model", tiny_model()]) == WRONG_INPUT
        assert said in capsys.readouterr().err


def go(run, path, *words):
    asked = write(run.parent / "asked.jsonl", prompts(4))
    common = ["--run", str(run), "--model", tiny_model(), "--data.path", asked, "--steps", "3", "--batch_size", "2"]
    common += ["--num_answers", "2", "--sampling.max_tokens", "4", "--checkpoints.every", "1", "--dtype", "float32"]
    return main(["policy", *common, "--ignore_gate", "true", "--principles.path", path, *words])


def test_a_policy_against_two_principles_and_an_ensemble_by_settings_alone(tmp_path, path, capsys):
    second = tmp_path / "second"
    feedback = write(tmp_path / "pairs.jsonl", pairs(8))
    train = ["reward", "--run", str(second), "--model", tiny_model(), "--data.path", feedback, "--held_out", "0"]
    assert main([*train, "--dtype", "float32"]) == OK
    words = ("--reward", f"{tiny_reward()},{second / 'reward'}", "--reward_rule", "cautious")
    assert go(tmp_path / "run", path, *words, "--principles.told", "brief", "not:kind") == OK
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["rewards/model_uncertainty/mean"] > 0


class Died(BaseException):
    """What a test raises where a process would be killed."""


def test_a_resumed_policy_is_told_what_it_would_have_been(tmp_path, path, monkeypatch):
    words = ("--reward", tiny_reward(), "--principles.num", "1")
    assert go(tmp_path / "whole", path, *words) == OK
    real = Training.one_step

    def one_step(self):
        if self.step == 2:
            raise Died
        return real(self)

    monkeypatch.setattr(Training, "one_step", one_step)
    with pytest.raises(Died):
        go(tmp_path / "torn", path, *words)
    monkeypatch.setattr(Training, "one_step", real)
    assert go(tmp_path / "torn", path, *words) == OK
    one, other = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("whole", "torn"))
    assert all((one[name] == other[name]).all() for name in one)


def test_scores_under_principles(tmp_path, path):
    answers = write(tmp_path / "answers.jsonl", demonstrations(3))
    found = []
    for words in ((), ("--principles.path", path, "--principles.told", "brief")):
        out = tmp_path / "out.jsonl"
        asked = ["score", "--reward", tiny_reward(), "--data.path", answers, "--out", str(out), "--dtype", "float32"]
        assert main([*asked, *words]) == OK
        found.append([json.loads(line)["reward"] for line in out.read_text().splitlines()])
    assert all(a != b for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("rules", "words", "said"),
    [
        (RULES, ("--principles.told", "breif"), "'breif' is not one of brief, kind, exact. Did you mean 'brief'?"),
        (RULES, (), "none is told: name them with --principles.told"),
        (RULES, ("--principles.num", "4"), "has 3 others than those told"),
        ([{"text": "Brief.", "negation": "Long."}], ("--principles.num", "1"), "principle 1: its name is missing"),
    ],
)  # fmt: skip
def test_principles_that_cannot_be_told(tmp_path, refused, rules, words, said):
    asked, path = write(tmp_path / "asked.jsonl", prompts(4)), write(tmp_path / "rules.jsonl", rules)
    common = [
        "policy",
        "--run",
        tmp_path / "run",
        "--model",
        tiny_model(),
        "--data.path",
        asked,
        "--ignore_gate",
        "true",
    ]
    assert said in refused(*common, "--reward", tiny_reward(), "--principles.path", path, *words)


def test_principles_without_a_file_and_draws_without_a_policy(tmp_path, path, capsys):
    with pytest.raises(InputError, match=r"--principles.path is missing"):
        PrincipleSettings(told=("brief",)).sampler()
    answers = write(tmp_path / "answers.jsonl", demonstrations(3))
    words = ["--principles.path", path, "--principles.num", "1"]
    assert main(["score", "--reward", tiny_reward(), "--data.path", answers, *words]) == WRONG_INPUT
    assert "draws for a policy's answers" in capsys.readouterr().err
