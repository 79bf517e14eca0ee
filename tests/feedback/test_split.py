import random

import pytest

from assay.feedback import leaks, read_comparisons, split_by_prompt
from assay.records import Comparison, Demonstration, Message, Prompt, reply, user_prompt
from assay.settings import InputError
from shared_data import shared


def pair(prompt: Prompt, number: int = 0) -> Comparison:
    return Comparison(prompt=prompt, responses=(reply(f"good {number}"), reply(f"bad {number}")))


PAIRS = [pair(user_prompt(f"Question {number % 20}"), number) for number in range(60)]


def prompts(records: tuple[Comparison, ...]) -> set[str]:
    return {record.prompt.messages[0].content for record in records}


def test_a_number_counts_prompts_and_no_prompt_straddles() -> None:
    train, held_out = split_by_prompt(PAIRS, held_out=5)
    assert len(prompts(held_out)) == 5 and len(prompts(train)) == 15
    assert len(held_out) == 15 and len(train) == 45
    assert not prompts(train) & prompts(held_out)
    assert [record for record in PAIRS if record in held_out] == list(held_out), "the order given is kept"


def test_sides_depend_on_neither_order_nor_additions() -> None:
    train, held_out = split_by_prompt(PAIRS, held_out=0.3, seed=1)
    shuffled = random.Random(0).sample(PAIRS, len(PAIRS))
    assert prompts(split_by_prompt(shuffled, held_out=0.3, seed=1)[1]) == prompts(held_out)
    more = [*PAIRS, *(pair(user_prompt(f"New {number}")) for number in range(50))]
    larger_train, larger_held_out = split_by_prompt(more, held_out=0.3, seed=1)
    assert prompts(held_out) < prompts(larger_held_out) and prompts(train) < prompts(larger_train)
    assert prompts(split_by_prompt(PAIRS, held_out=0.3, seed=2)[1]) != prompts(held_out)


def test_a_share_is_met_on_average() -> None:
    records = [user_prompt(str(number)) for number in range(4000)]
    _, held_out = split_by_prompt(records, held_out=0.25)
    assert abs(len(held_out) - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5


def test_spelling_tools_and_ids_do_not_part_one_prompt() -> None:
    same = [
        user_prompt("What is it?"),
        user_prompt(" what  is IT? "),
        user_prompt("What is it?", id="x", tools=({"a": 1},)),
    ]
    for seed in range(10):
        train, held_out = split_by_prompt([*same, user_prompt("Else")], held_out=1, seed=seed)
        assert {len(train), len(held_out)} == {1, 3}


def test_texts_without_prompt_split_one_by_one() -> None:
    texts = [Demonstration(prompt=Prompt(messages=()), response=reply(str(n), plain=True)) for n in range(10)]
    assert [len(side) for side in split_by_prompt(texts, held_out=4)] == [6, 4]


@pytest.mark.parametrize(
    ("held_out", "what"),
    [
        (20, "has 20"), (-1, "has 20"), (1.0, "must lie in"), (-0.1, "must lie in"), (True, "must be a number"),
        (0.0001, "none to hold out"),
    ],
)  # fmt: skip
def test_impossible_splits(held_out: float, what: str) -> None:
    with pytest.raises(InputError, match=what):
        split_by_prompt(PAIRS, held_out=held_out)


def test_none_held_out() -> None:
    assert split_by_prompt(PAIRS, held_out=0) == (tuple(PAIRS), ())


def test_leaks_are_counted_by_kind() -> None:
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))
    train = [pair(user_prompt("One"), 1), pair(Prompt(messages=turns), 2)]
    test = [
        pair(user_prompt(" one"), 3),  # the prompt
        pair(user_prompt("Two"), 1),  # both answers
        pair(user_prompt("Hi"), 4),  # the start of a conversation in train
        pair(Prompt(messages=(Message("user", "One"), *turns[1:])), 5),  # goes on from a prompt of train
        pair(user_prompt("Three"), 6),
    ]
    found = leaks(train, test)
    assert (found.prompts, found.answers, found.continuations) == (1, 1, 2)
    assert found.examples == tuple(record.id for record in test[:4])
    assert found
    assert not leaks(train, test[1:])


def test_real_pairs_split_without_leak() -> None:
    pairs = read_comparisons(shared("pairs_pku_saferlhf.jsonl")).records
    train, held_out = split_by_prompt(pairs, held_out=200)
    assert len({record.prompt.id for record in held_out}) >= 200
    assert len(train) + len(held_out) == len(pairs)
    assert leaks(train, held_out).prompts == 0
    at_random = random.Random(0).sample(pairs, len(pairs))
    assert leaks(at_random[600:], at_random[:600]).prompts > 400, "what a split by record leaks"
