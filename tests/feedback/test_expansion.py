"""N-way expansion: N(N-1)/2 pairs; one prompt never straddles the split."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from assay.feedback import split_by_prompt
from assay.records import Comparison, Ranking, Rating, reply, text_of, user_prompt
from assay.settings import InputError


def ranking(ranks, prompt="Which?"):
    return Ranking(
        prompt=user_prompt(prompt), responses=tuple(reply(f"answer {i}") for i in range(len(ranks))), ranks=tuple(ranks)
    )


@pytest.mark.parametrize("size", range(2, 10))
def test_n_answers_make_every_pair_once_the_better_first(size):
    ranked = ranking(range(size))
    pairs = ranked.comparisons()
    assert len(pairs) == size * (size - 1) // 2
    assert [pair.responses for pair in pairs] == list(itertools.combinations(ranked.responses, 2))
    assert all(pair.preference == 1 and pair.prompt == ranked.prompt for pair in pairs)
    assert len({pair.id for pair in pairs}) == len(pairs)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=9))
def test_tied_pairs_are_left_out_and_no_others(ranks):
    given_rank = {f"answer {i}": rank for i, rank in enumerate(ranks)}
    pairs = ranking(ranks).comparisons()
    tied = sum(math.comb(count, 2) for count in Counter(ranks).values())
    assert len(pairs) == math.comb(len(ranks), 2) - tied
    assert len({frozenset(map(str, pair.responses)) for pair in pairs}) == len(pairs)
    assert all(given_rank[text_of(pair.chosen)] < given_rank[text_of(pair.rejected)] for pair in pairs)


# Few questions, so that they repeat; as the same prompt whatever its case and spacing.
QUESTIONS = st.sampled_from(
    [f"{space}{word} {i}?" for i in range(6) for word in ("Why", "why") for space in ("", "  ")]
)
ANSWERS = st.lists(st.integers(0, 20), min_size=2, max_size=9, unique=True)


@st.composite
def judgements(draw):
    prompt = user_prompt(draw(QUESTIONS), tools=draw(st.sampled_from([(), ({"name": "look"},)])))
    answers = tuple(reply(f"answer {number}") for number in draw(ANSWERS))
    kind = draw(st.sampled_from([Comparison, Ranking, Rating]))
    if kind is Comparison:
        return Comparison(prompt=prompt, responses=answers[:2], preference=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])))
    if kind is Ranking:
        return Ranking(prompt=prompt, responses=answers, ranks=tuple(draw(st.integers(0, 3)) for _ in answers))
    return Rating(prompt=prompt, response=answers[0], value=draw(st.integers(1, 5)))


def questions(records):
    return {record.prompt.messages[0].content.strip().lower() for record in records}


def expanded(records):
    """Rankings as their pairs, which is what training and held-out accuracy see."""
    return [one for record in records for one in (record.comparisons() if isinstance(record, Ranking) else (record,))]


@settings(deadline=None)
@given(
    st.lists(judgements(), min_size=2, max_size=40),
    st.one_of(st.integers(1, 5), st.sampled_from([0.2, 0.5])),
    st.integers(0, 99),
)
def test_no_prompt_is_on_both_sides_of_a_split(records, held_out, seed):
    try:
        train, rest = split_by_prompt(records, held_out=held_out, seed=seed)
    except InputError:  # too few prompts for such a split
        reject()
    assert not questions(train) & questions(rest)
    assert not {r.prompt.id for r in train} & {r.prompt.id for r in rest}
    assert not questions(expanded(train)) & questions(expanded(rest)), "nor after the expansion"
    assert Counter(r.id for r in (*train, *rest)) == Counter(r.id for r in records), "and none is lost"
    if isinstance(held_out, int):
        assert len(questions(rest)) == held_out
