"""Rankings, ratings and objectives: what a row says and what is counted where it says nothing."""

import pytest

from assay.feedback.read import read_comparisons, read_rankings, read_ratings
from assay.feedback.write import write_records
from assay.settings import InputError

ASKED = [{"role": "user", "content": "Which?"}]
PAIR = {"prompt": ASKED, "responses": ["One.", "Two."]}
RATED = {"prompt": ASKED, "response": "One."}


@pytest.mark.parametrize(
    ("ranks", "found"),
    [([0.9, 0.1, 0.5], (0, 1, 2)), ([1, 0.5, 0.5], (0, 0, 1)), ([3, 1, 2], (0, 1, 2)), ([-0.5, 0.5, 7], (0, 1, 2))],
)
def test_ranks_are_compared_as_they_are(ranks, found):
    texts = ["a", "b", "c"]
    (record,) = read_rankings([{"prompt": ASKED, "responses": texts, "ranks": ranks}]).records
    assert record.ranks == found
    assert [r[0].content for r in record.responses] == [t for _, t in sorted(zip(ranks, texts, strict=True))]


def test_a_rank_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="column 'ranks' holds nan, which no file of records can carry"):
        read_rankings([{**PAIR, "ranks": [0, float("nan")]}])
    with pytest.raises(InputError, match="ranks must be a list of numbers"):
        read_rankings([{**PAIR, "ranks": [0, "first"]}])


def test_a_rating_row_without_any_of_the_objectives_is_counted():
    rows = [{**RATED, "scores": {"kind": 3}}, {**RATED, "scores": {"kinds": 3}}]
    with pytest.raises(InputError, match="no judgement under 'kind'"):
        read_ratings(rows, objectives=("kind",))
    read = read_ratings(rows, objectives=("kind",), on_bad="skip")
    assert len(read.records) == 1 and read.report.dropped == {"no judgement": 1}


@pytest.mark.parametrize(
    ("reader", "row"), [(read_comparisons, {**PAIR, "kind_preferred": 0, "honest": "B"}), (read_ratings, RATED)]
)
def test_own_records_of_other_objectives_are_left_out_and_counted(tmp_path, reader, row):
    row = row if "responses" in row else {**row, "scores": {"kind": 1, "honest": 2}}
    both = reader([row], objectives=("kind", "honest")).records
    path = write_records(tmp_path / "own.jsonl", both)
    read = reader(path, objectives=("honest",))
    assert [r.objective for r in read.records] == ["honest"]
    assert read.report.notes == {"judgement under another objective left out": 1}
    with pytest.raises(InputError, match=r"holds no records \(2 judgement under another objective left out\)"):
        reader(path, objectives=("brief",))


def test_other_columns_are_kept_and_those_of_one_label_are_not():
    row = {**PAIR, "kind": "B", "kind_annotator": "ann", "week": 3, "margin": 2.0, "shown_first": "x", "label": "odd"}
    (record,) = read_comparisons([row], objectives=("kind",)).records
    assert record.annotator == "ann" and record.meta == {"week": 3, "shown_first": "rejected"}


def test_votes_that_nobody_signed_are_nobodys_and_each_is_counted():
    votes = [{"kind": "A"}, {"kind": "A", "annotator": None}, {"kind": "B"}, {"kind": "A", "annotator": "Ann"}]
    records = read_comparisons([{**PAIR, "annotations": votes}], objectives=("kind",)).records
    assert [r.annotator for r in records] == ["", "", "", "Ann"]
    assert [r.preference for r in records] == [1.0, 1.0, 0.0, 1.0]
    assert len({r.id for r in records}) == 4
    signed = read_comparisons([{**PAIR, "annotations": votes[:2], "annotator": "Bo"}], objectives=("kind",)).records
    assert [r.annotator for r in signed] == ["Bo", "Bo"]


def test_a_row_may_name_its_one_objective():
    """Of rankings, ratings and pairs; what is asked for chooses among such rows."""
    (ranked,) = read_rankings([{**PAIR, "objective": "kind"}]).records
    assert ranked.objective == "kind" and not ranked.meta
    rows = [{**RATED, "rating": 4, "objective": "kind"}, {**RATED, "rating": 1, "objective": "honest"}]
    both = read_ratings(rows).records
    assert [r.objective for r in both] == ["kind", "honest"] and both[0].id != both[1].id
    (kind,) = read_ratings(rows, objectives=("kind",)).records
    assert (kind.value, kind.objective) == (4, "kind") and "objective" not in kind.meta
    pair = {"prompt": ASKED, "chosen": "One.", "rejected": "Two."}
    (named,) = read_comparisons([{**pair, "objective": "overall", "kind": 1}], objectives=("kind",)).records
    assert (named.objective, named.preference) == ("kind", 0.0)  # a judgement under that very name comes first
    read = read_comparisons([{**pair, "objective": "kind"}, {**pair, "objective": "honest"}], objectives=("honest",))
    assert [r.objective for r in read.records] == ["honest"]
    assert read.report.notes == {"judgement under another objective left out": 1}
