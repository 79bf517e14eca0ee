"""Judgements of places: separators that are words, and offsets that follow the text when the reader changes it."""

import pytest

from assay.feedback.read import read_spans, read_steps
from assay.settings import InputError

ASKED = [{"role": "user", "content": "Hi"}]
HH = "\n\nHuman: hi\n\nAssistant:"


def steps(*texts, prompt=ASKED):
    return {"prompt": prompt, "completions": list(texts), "labels": [True] * len(texts)}


def spans(response, *told, prompt=HH):
    marks = [{"start": response.index(text), "end": response.index(text) + len(text), "type": "odd"} for text in told]
    return {"prompt": prompt, "response": response, "spans": marks}


def said_at(record):
    """The words that stand at each span."""
    return [record.response[0].content[span.start : span.end] for span in record.spans]


@pytest.mark.parametrize("around", ["", "<step>"])
def test_a_separator_is_a_word_and_no_set_of_characters(around):
    texts = ("the set", "steps <st", "p> end")
    (record,) = read_steps([steps(*(around + text + around for text in texts))], separator="<step>").records
    assert record.response[0].content == "the set<step>steps <st<step>p> end"
    assert said_at(record) == list(texts)


def test_newlines_around_steps_are_still_taken_off():
    (record,) = read_steps([steps("\n\nOne.\n", "Two.\n\n")]).records
    assert record.response[0].content == "One.\nTwo." and said_at(record) == ["One.", "Two."]


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("<step>", "a"), r"completions\[0\] is no text"),
        (("a<step>b", "a"), r"completions\[0\] holds '<step>'"),
        ((1, "a"), r"completions\[0\] is no text"),
    ],
)
def test_steps_that_are_none(texts, told):
    with pytest.raises(InputError, match=told):
        read_steps([steps(*texts)], separator="<step>")


def test_no_separator_is_refused():
    with pytest.raises(InputError, match="the separator that ends a step is empty"):
        read_steps([steps("a")], separator="")


@pytest.mark.parametrize("repeated", ["", HH])
def test_spans_follow_the_text_when_a_prompt_or_spaces_are_taken_off(repeated):
    (record,) = read_spans([spans(f"{repeated}  Hello small world \n", "Hello", "world")]).records
    assert record.response[0].content == "Hello small world"
    assert said_at(record) == ["Hello", "world"]


def test_a_span_loses_the_spaces_that_the_text_lost():
    (record,) = read_spans([spans(" Hello world ", " Hello world ")]).records
    assert said_at(record) == ["Hello world"]


@pytest.mark.parametrize("told", ["hi\n\nAssistant:  Hel", "Human", "  "])
def test_spans_of_what_was_taken_off_are_refused(told):
    with pytest.raises(InputError, match=r"is not in the response's own words, which are from 25 to 36"):
        read_spans([spans(f"{HH}  Hello world", told)])


def test_steps_follow_the_text_too():
    (record,) = read_steps([steps(" One.", "Two. ", prompt=HH)]).records
    assert record.response[0].content == "One.\nTwo." and said_at(record) == ["One.", "Two."]
    (record,) = read_steps([steps("x", " One.", "Two. ")]).records
    assert said_at(record) == ["x", " One.", "Two. "]
