"""Rewards that can be checked, through the shape of programmatic rewards."""

import pytest

from assay.records import Rollout, reply, user_prompt
from assay.rewards.rules import combine, fill_rewards
from assay.settings import InputError


def rewards(name, texts, **columns):
    rows = [user_prompt("?", meta={key: values[i] for key, values in columns.items()}) for i in range(len(texts))]
    shared = {"stop": "stop", "ids": (1,), "sampler_logprobs": (0.0,)}
    rollouts = [Rollout(prompt=p, response=reply(text), **shared) for p, text in zip(rows, texts)]
    rule = combine([(1.0, f"assay.rewards.verifiable:{name}")])
    return [rollout.reward for rollout in fill_rewards(rule, rollouts)]


def test_exact_match_leaves_spaces_out():
    assert rewards("exact_match", [" 42\n", "42.", "forty"], answer=["42", 42, "forty "]) == [1, 0, 1]


def test_the_last_number_counts():
    texts = ["First 3, then 1,204.", "It is 7 or 8", "none", "-2.5"]
    assert rewards("last_number", texts, answer=["1204", 7, 1, -2.5]) == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("between 12-15", 15), ("it is .5", 0.5), ("x = -.5", -0.5), ("roots are 1,2", 2), ("1,2345", 2345),
        ("12,345,678.5 in all", 12345678.5), ("(-3)", -3), ("f(2)-7", 7), ("3.14.", 3.14), ("10 - 4", 4),
    ],
)  # fmt: skip
def test_what_a_number_is(text, number):
    assert rewards("last_number", [text, text], answer=[number, -number]) == [1, 0]


def test_patterns_may_span_lines():
    assert rewards("matches", ["a\nb", "ab"], pattern=["a.b", "^b"]) == [1, 0]


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("matches", {"pattern": ["("]}, "no regular expression"),
        ("last_number", {"answer": ["many"]}, "must hold numbers"),
        ("exact_match", {"other": [1]}, "needs 'answer'"),
        ("exact_match", {"answer": [None]}, "exact_match: 1 of 1 prompts have no `answer`"),
        ("last_number", {"answer": [None]}, "last_number: 1 of 1 prompts have no `answer`"),
        ("matches", {"pattern": [None]}, "matches: 1 of 1 prompts have no `pattern`"),
    ],
)
def test_columns_that_cannot_be_used_are_named(name, columns, said):
    with pytest.raises(InputError, match=said):
        rewards(name, ["x"], **columns)
