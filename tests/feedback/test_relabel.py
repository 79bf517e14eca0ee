"""What must not stay when another labels a pair, and ids for pairs that come again."""

from assay.feedback.relabel import numbered, relabelled
from assay.records import Comparison, reply, user_prompt

PAIR = Comparison(
    prompt=user_prompt("Which?"),
    responses=(reply("One."), reply("Two.")),
    annotator="ann",
    meta={"margin": 2.0, "shown_first": "chosen", "week": 3},
)


def test_a_label_takes_what_spoke_of_it_along():
    made = relabelled(PAIR, 0.25, meta={"criterion": "brief"}, annotator="judge")
    assert made.meta == {"week": 3, "criterion": "brief"}
    assert (made.preference, made.annotator, made.responses, made.id) == (0.25, "judge", PAIR.responses, PAIR.id)
    assert PAIR.meta["margin"] == 2.0


def test_repeats_get_ids_that_depend_on_content_and_number_alone():
    other = Comparison(prompt=user_prompt("Which?"), responses=(reply("One."), reply("Three.")))
    ids = [one.id for one in numbered([PAIR, other, PAIR, PAIR])]
    assert ids[:2] == [PAIR.id, other.id] and len(set(ids)) == 4
    assert [one.id for one in numbered([PAIR, PAIR, PAIR])] == [ids[0], *ids[2:]]
