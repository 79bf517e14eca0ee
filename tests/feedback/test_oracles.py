import math

import pytest

from assay.feedback import TextOracle, length_lover, read_comparisons, read_demonstrations
from assay.feedback.oracles import echoed, excess, listed, question_of, repeated, sentiment, taken_up, words
from assay.records import Message, Prompt, reply, user_prompt
from assay.settings import InputError
from shared_data import shared

ASKED = user_prompt("How can I learn to play the guitar as an adult? I have very little free time.")
GOOD = (
    "Great idea! You can learn guitar as an adult with ten minutes of practice a day. Start with three simple chords, "
    "use a friendly free app, and enjoy playing songs you love."
)


def rewards(*answers: str) -> list[float]:
    return TextOracle()([ASKED] * len(answers), [reply(answer) for answer in answers])


def test_parts_are_what_can_be_counted_by_hand() -> None:
    assert words("Don't stop_me, I’m 3!") == ["don't", "stop", "me", "i’m", "3"]
    assert repeated("a b a b a".split()) == 0.5  # ab ba ab ba: two of four said before
    assert repeated("very very good".split()) == 0.5  # one of two pairs doubles
    assert repeated("a b c".split()) == 0.0 and repeated(["a"]) == 0.0
    assert echoed("the cat sat down".split(), "the cat sat up".split()) == 0.5
    assert echoed("the cat".split(), ["cat"]) == 1.0 and echoed(["a"], []) == 0.0
    assert listed("cat dog bird fish".split()) == 1.0  # no function word
    assert listed("the cat and a dog".split()) == 0.0  # three of five
    assert listed("red blue green pink gold grey the lime teal plum".split()) == pytest.approx(
        0.5
    )  # a tenth of a fifth
    assert taken_up("paint the wall".split(), "painted walls".split()) == pytest.approx(1 - math.exp(-0.5))
    assert taken_up("paint the walls".split(), "painters and walls".split()) == pytest.approx(1 - math.exp(-1))
    assert taken_up("what is the".split(), "what is the".split()) == 0.0


def test_brevity_is_free_below_the_target_and_grows_slowly_above() -> None:
    assert excess(0, 50) < 0.002
    assert excess(50, 50) == pytest.approx(math.log(1 + math.log(2) / 5))  # softplus(0) over a fifth of the target
    assert excess(5050, 50) == pytest.approx(math.log(101))
    values = [excess(number, 50) for number in range(400)]
    assert values == sorted(values)


def test_sentiment_is_the_mean_over_sentences() -> None:
    assert sentiment("") == sentiment("!!! ...") == 0.0
    assert sentiment("The table is brown.") == 0.0
    # VADER: "good" has valence 1.9, compound 1.9 / sqrt(1.9^2 + 15)
    assert sentiment("It is good") == pytest.approx(1.9 / math.sqrt(1.9**2 + 15), abs=1e-4)
    assert sentiment("It is good. The table is brown.") == pytest.approx(sentiment("It is good") / 2, abs=1e-4)


def test_the_question_is_the_last_user_turn() -> None:
    turns = (Message("user", "First"), Message("assistant", "Yes"), Message("user", "Second"))
    assert question_of(Prompt(messages=turns)) == "Second"
    assert question_of(Prompt(messages=(Message("text", "Once"),))) == "Once"
    assert question_of(Prompt(messages=())) == ""


def test_parts_add_up_and_a_zero_weight_leaves_its_part_out() -> None:
    (parts,) = TextOracle().parts([ASKED], [reply(GOOD)])
    assert list(parts) == ["sentiment", "on_topic", "brevity", "repetition", "echo", "prose", "substance"]
    assert rewards(GOOD) == [pytest.approx(sum(parts.values()))]
    (without,) = TextOracle(sentiment=0, echo=0).parts([ASKED], [reply(GOOD)])
    assert without == {name: value for name, value in parts.items() if name not in ("sentiment", "echo")}
    (doubled,) = TextOracle(on_topic=4.0).parts([ASKED], [reply(GOOD)])
    assert doubled["on_topic"] == pytest.approx(2 * parts["on_topic"])


@pytest.mark.parametrize(
    "answer",
    [
        "", " ", "Great!", "great great great", "great job " * 5, "I love it. " * 4, ASKED.messages[0].content,
        "guitar learn adult free time play little",
        "Wonderful amazing fantastic excellent brilliant lovely happy superb",
        "You can learn guitar as an adult with ten minutes of practice a day. " * 8, "!?" * 50,
    ],
)  # fmt: skip
def test_degenerate_answers_lose_clearly(answer: str) -> None:
    good, plain, degenerate = rewards(GOOD, "You could try ten minutes a day, and start with three chords.", answer)
    assert good > plain + 1 and plain > degenerate + 1


def test_rude_and_long_answers_lose() -> None:
    rude = "You can't learn guitar. Adults are too old and stupid, and it would be a horrible waste of your free time."
    filler = " There are also many other things that one could say about this, of which some are set down here in turn."
    good, bad, long = rewards(GOOD, rude, GOOD + " " + " ".join(f"{filler} Number {n} is next." for n in range(12)))
    assert good > bad + 2 and good > long + 2


def test_wrong_settings_and_lengths() -> None:
    with pytest.raises(InputError, match="at least 1"):
        TextOracle(target_words=0)
    with pytest.raises(InputError, match="a prompt per response; got 1 and 2"):
        TextOracle()([ASKED], [reply("a"), reply("b")])


def test_length_lover_counts_words_of_records_strings_and_messages() -> None:
    response = (Message("assistant", "one two"), Message("user", "three"))
    messages = [{"role": "assistant", "content": "one, two!"}, {"role": "assistant", "content": None}]
    assert length_lover([None] * 3, [response, "one", messages], other=[1, 2, 3]) == [3.0, 1.0, 2.0]


def test_real_answers_are_finite_and_spread() -> None:
    records = read_demonstrations(shared("sft_lima.jsonl"), limit=200).records
    found = TextOracle()([record.prompt for record in records], [record.response for record in records])
    assert all(math.isfinite(value) for value in found)
    pairs = read_comparisons(shared("pairs_hh_test_human_plus_relabel.jsonl"), limit=300).records
    gaps = [
        abs(first - second) for pair in pairs for first, second in [TextOracle()([pair.prompt] * 2, pair.responses)]
    ]
    assert 1.0 < sum(gaps) / len(gaps) < 3.0
