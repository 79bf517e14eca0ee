"""Which answers no chain of judgements ties together."""

from assay.feedback.graph import Gap, describe_gaps, unconnected
from assay.records import Comparison, Prompt, Ranking, Rating, reply, user_prompt


def compare(first, second, preference=1.0, prompt="Name one.", **fields):
    return Comparison(
        prompt=user_prompt(prompt), responses=(reply(first), reply(second)), preference=preference, **fields
    )


def rank(answers, ranks=(), prompt="Name one."):
    return Ranking(prompt=user_prompt(prompt), responses=tuple(map(reply, answers)), ranks=ranks)


NAME = user_prompt("Name one.").id


def test_two_pairs_without_a_common_answer_fall_apart_and_a_third_joins_them():
    apart = [compare("a", "b"), compare("c", "d")]
    assert unconnected(apart) == [Gap(NAME, "overall", (("a", "b"), ("c", "d")))]
    assert unconnected([*apart, compare("b", "c", preference=0.5)]) == [], "a tie says how they stand"
    assert unconnected([*apart, rank("abc")]) == []


def test_one_judgement_has_no_gap_and_neither_have_chains():
    assert unconnected([compare("a", "b")]) == []
    assert unconnected([rank("abc")]) == []
    assert unconnected([compare("a", "b"), compare("c", "b"), compare("d", "c", preference=0.0)]) == []


def test_prompts_and_objectives_are_graphs_of_their_own():
    other = compare("c", "d", prompt="Name another.")
    assert unconnected([compare("a", "b"), other]) == []
    kind = [compare("a", "b", objective="kind"), compare("b", "c", objective="kind")]
    honest = [compare("a", "b", objective="honest"), compare("c", "d", objective="honest")]
    assert unconnected(kind + honest) == [Gap(NAME, "honest", (("a", "b"), ("c", "d")))]
    assert unconnected([kind[0], honest[1]]) == []


def test_rankings_join_what_they_order_and_leave_ties_apart():
    assert unconnected([rank("abc"), rank("de")]) == [Gap(NAME, "overall", (("a", "b", "c"), ("d", "e")))]
    assert unconnected([rank("abc", (0, 0, 1)), rank("cd")]) == []
    assert unconnected([rank("ab", (0, 0)), rank("bc")]) == [Gap(NAME, "overall", (("a",), ("b", "c")))]


def test_ratings_and_records_without_a_prompt_are_left_out():
    rated = [Rating(prompt=user_prompt("Name one."), response=reply(text), value=1) for text in "ab"]
    plain = [
        Comparison(prompt=Prompt(messages=()), responses=(reply(a, plain=True), reply(b, plain=True)))
        for a, b in ("ab", "cd")
    ]
    assert unconnected([*rated, *plain]) == []


def test_the_line_for_people():
    fine = [compare("a", "b", prompt="Fine?"), compare("b", "c", prompt="Fine?"), compare("a", "b", prompt="Single?")]
    assert describe_gaps(fine, "comparisons") == ""
    apart = [compare("a", "b"), compare("c", "d")]
    assert describe_gaps([*fine, *apart], "comparisons") == (
        f"1 of 2 prompts with several comparisons fall into unconnected parts (the first: {NAME}, parts of 2 and 2 "
        f"answers): the data says nothing of how these compare"
    )
    assert "parts of 3, 2 and 2 answers" in describe_gaps([*apart, rank("efg")], "rankings")
    assert "4 parts of 2 to 3 answers" in describe_gaps([*apart, rank("efg"), compare("x", "y")], "comparisons")
