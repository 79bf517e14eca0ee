"""Rewards at tokens: where feedback lands, how they become a response's reward, and a planted wrong step found."""

import json

import pytest
import torch

from assay.cli import OK, main
from assay.engine.catalog import resolve_model
from assay.engine.learner import Learner
from assay.engine.load import load_reward
from assay.feedback.read import read_spans, read_steps
from assay.losses.dense import token_binary, token_kinds
from assay.records import Prompt, SpanLabels, reply, user_prompt
from assay.rewards.model import RewardModel
from assay.rewards.pooling import Pooling, span_tokens, step_ends
from assay.settings import InputError
from assay.tokens.chat import Encoder, collate
from tiny import CONTEXT, CONVERSATIONS, asked, pairs, spans, steps, tiny_model, tokenizer, write

NO = user_prompt("Count.")


def test_losses_by_hand():
    # logit ln 3: p = 3/4, so -ln .75 = .287682 and -ln .25 = 1.386294
    logits = torch.tensor([[3.0, 3.0]]).log()
    assert token_binary(logits, torch.tensor([[1.0, 0.0]])).tolist()[0] == pytest.approx([0.287682, 1.386294], abs=1e-6)
    both = token_kinds(logits[..., None].expand(1, 2, 2), torch.tensor([[[1.0, 1.0], [1.0, 0.0]]]))
    assert both.tolist()[0] == pytest.approx([0.575364, 1.673976], abs=1e-6)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling(), [[3.0], [0.0]]),
        (Pooling(pool="mean"), [[1.5], [0.0]]),
        (Pooling(pool="min"), [[1.0], [0.0]]),
        (Pooling(pool="last"), [[2.0], [0.0]]),
        (Pooling(link="right", pool="last"), [[0.880797], [0.0]]),
        (Pooling(link="wrong", pool="sum"), [[-0.731059 - 0.880797], [0.0]]),
    ],
)
def test_pooling_by_hand(pooling, expected):
    numbers = torch.tensor([[[1.0], [-9.0], [2.0], [7.0]], [[5.0], [5.0], [5.0], [5.0]]])
    counted = torch.tensor([[True, False, True, False], [False] * 4])
    found = pooling.pooled(numbers, counted)
    assert found.tolist() == [pytest.approx(row, abs=1e-5) for row in expected]


def test_the_first_token_of_a_text_without_a_prompt_counts_neither_in_training_nor_after():
    words = Encoder(tokenizer())
    alone = Prompt(messages=())
    texts = [reply("Orange.", plain=True), reply("Tuesday.", plain=True)]
    encoded = [words.conversation(alone, text) for text in texts]
    batch = collate([[item] for item in encoded], 0)
    assert torch.equal(Pooling().counted(encoded, words, batch.mask.shape[1]), batch.mask)
    assert not batch.mask[:, 0].any() and batch.mask[:, 1:].any()


def test_rewards_at_tokens_are_of_conversations_within_the_context():
    torch.manual_seed(0)
    model = load_reward(resolve_model(tiny_model()), dtype="float32", fresh_head=True, at_tokens=True)
    reward = RewardModel(Learner(model), Encoder(tokenizer()), name="tiny", pooling=Pooling())
    with pytest.raises(InputError, match="conversation 0 has"):
        reward.token_rewards([(NO, reply("One. " * CONTEXT))])


@pytest.mark.parametrize("text", ["One.\nTwo.\nThree.", "One.", "1\n2", "a b c\n\n\nd"])
def test_a_step_ends_where_the_separator_stands_and_at_the_end(text):
    words = Encoder(tokenizer())
    encoded = words.conversation(NO, reply(text))
    ends = step_ends(encoded, words, "\n")
    assert len(ends) == len([part for part in text.split("\n") if part])
    assert encoded.ids[ends[-1]] == words.eos
    for end in ends[:-1]:
        assert "\n" in words.decode([encoded.ids[end]])


@pytest.mark.parametrize(("prompt", "response"), [c for c in CONVERSATIONS if len(c[1]) == 1])
def test_places_are_those_of_the_text(prompt, response):
    """The characters of a token are the token's text; those of all tokens are all of the response."""
    words = Encoder(tokenizer())
    encoded, content = words.conversation(prompt, response), response[0].content
    found = words.places(prompt, response)
    assert len(found) == len(encoded.ids)
    covered = set()
    for token, (start, end) in zip(encoded.ids, found, strict=True):
        if 0 <= start and end <= len(content):
            covered |= set(range(start, end))
            text = words.tokenizer.decode([token])
            assert "\ufffd" in text or text == content[start:end] or start == end
    assert covered == set(range(len(content)))


def test_spans_land_on_their_tokens():
    words = Encoder(tokenizer())
    response = reply("It is 12 metres high.")
    found = span_tokens(words.places(NO, response), [(6, 8, 0), (9, 20, 1)], 2)
    ids = words.conversation(NO, response).ids
    told = [
        "".join(words.tokenizer.decode([i]) for i, row in zip(ids, found.tolist(), strict=True) if row[k])
        for k in (0, 1)
    ]
    assert told[0].strip() == "12" and told[1].strip() == "metres high"


def test_records_go_to_json_and_back():
    read = read_steps(steps(4)).records + read_spans(spans(4)).records
    assert tuple(SpanLabels.from_json(json.loads(json.dumps(r.to_json()))) for r in read) == read
    assert read_spans([r.to_json() for r in read[4:]]).records == read[4:]


def train(run, rows, *words):
    data = write(run.parent / "feedback.jsonl", rows)
    common = ["--run", str(run), "--model", tiny_model(), "--data.path", data, "--optimiser.lr", "0.003"]
    return main(["reward", *common, "--batch_size", "8", "--dtype", "float32", *words])


def test_the_first_planted_wrong_step_is_located(tmp_path, capsys):
    words = ("--likelihood", "process", "--held_out", "40", "--epochs", "6")
    assert train(tmp_path / "run", steps(160), *words) == OK
    assert "first wrong step found" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "held_out.json").read_text())
    assert found["first wrong step found"]["value"] > 0.95
    assert found["held-out accuracy of steps"]["value"] > found["always the more frequent"]["value"] + 0.1
    reward = RewardModel.from_pretrained(str(tmp_path / "run" / "reward"), dtype="float32")
    good, bad = reward.score([(NO, reply("Yes, one.\nWell, yes.")), (NO, reply("Yes, one.\nNo, two!\nWell, yes."))])
    assert good > 0.5 > bad
    (tokens,) = reward.token_rewards([(NO, reply("Yes, one.\nNo, two!\nWell, yes."))])
    assert int((tokens != 0).sum()) == 3 and tokens[tokens != 0].argmin() == 1


def test_token_rewards_sum_to_the_reward(tmp_path):
    assert train(tmp_path / "run", pairs(24), "--likelihood", "token_bradley_terry", "--held_out", "0") == OK
    reward = RewardModel.from_pretrained(str(tmp_path / "run" / "reward"), dtype="float32")
    for value, tokens in zip(reward.score(CONVERSATIONS), reward.token_rewards(CONVERSATIONS), strict=True):
        assert value == pytest.approx(float(tokens.sum()), abs=1e-4)


def test_spans_of_each_kind_are_found(tmp_path):
    assert train(tmp_path / "run", spans(120), "--likelihood", "spans", "--held_out", "30", "--epochs", "6") == OK
    found = json.loads((tmp_path / "run" / "held_out.json").read_text())
    for kind in ("number", "shout"):
        assert found[f"area under the ROC, {kind}"]["value"] > 0.95
    reward = RewardModel.from_pretrained(str(tmp_path / "run" / "reward"), dtype="float32")
    clean, wrong = reward.score([(NO, reply("It may be green.")), (NO, reply("It is 12 metres high."))])
    assert clean > wrong


def test_a_reward_of_whole_conversations_has_none_for_tokens(tmp_path):
    assert train(tmp_path / "run", pairs(8), "--held_out", "0", "--epochs", "0.5") == OK
    reward = RewardModel.from_pretrained(str(tmp_path / "run" / "reward"))
    with pytest.raises(InputError, match="none for its tokens"):
        reward.token_rewards(CONVERSATIONS[:1])


STEP = {"prompt": asked(0), "completions": ["One.", "Two."], "labels": [True, False]}
SPAN = {"prompt": asked(0), "response": "It is 12.", "spans": [{"start": 6, "end": 8, "type": "number"}]}


@pytest.mark.parametrize(
    ("likelihood", "row", "told"),
    [
        ("process", {**STEP, "labels": [True]}, "2 completions and 1 labels: one label for each step"),
        ("process", {**STEP, "labels": [True, 2]}, "labels[1]=2: write true or false"),
        ("process", {**STEP, "labels": [True, True]}, "all 2 steps are 1: there is nothing to tell apart"),
        ("process", {**STEP, "completions": ["One.\nand", "Two."]}, "completions[0] holds '\\n', which ends a step"),
        ("process", {**STEP, "completions": ["One.", " "]}, "completions[1] is no text"),
        ("spans", {**SPAN, "spans": [{"start": 6, "end": 80, "type": "number"}]}, "is no part of 9 characters"),
        ("spans", {**SPAN, "spans": [{"start": 6, "end": 8}]}, "spans[0] has no type"),
        ("spans", {**SPAN, "spans": [{"start": 6, "end": 8, "type": "x", "text": "21"}]}, "not what stands from 6"),
        ("spans", {**SPAN, "spans": []}, "no row has a span"),
    ],
)  # fmt: skip
def test_feedback_on_places_that_cannot_be_used(tmp_path, refused, likelihood, row, told):
    whole = "all 2 steps" in told or "no row" in told
    words = ["reward", "--run", tmp_path / "run", "--model", tiny_model(), "--held_out", 0, "--likelihood", likelihood]
    assert told in refused(*words, "--data.path", write(tmp_path / "rows.jsonl", [row]), lines=1 if whole else 2)
