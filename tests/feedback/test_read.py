import gzip
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.feedback import read_comparisons, read_demonstrations, read_prompts, read_texts
from assay.records import Comparison, reply, user_prompt
from assay.settings import InputError
from feedback.rows import GOOD, PAIRS, lines, turns
from shared_data import shared


def wrong(source: Any, read: Any = read_comparisons, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(source, **options)
    return str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    lines(tmp_path / "pairs.jsonl", GOOD)
    assert (
        wrong(tmp_path / "pair.jsonl") == f"no such file or folder: {tmp_path}/pair.jsonl. Did you mean 'pairs.jsonl'?"
    )
    assert "The folder" in wrong(tmp_path / "nowhere" / "pairs.jsonl")
    assert wrong(lines(tmp_path / "empty.jsonl")) == f"{tmp_path}/empty.jsonl is empty (0 bytes)"
    assert wrong(lines(tmp_path / "blank.jsonl", b"", b" ")) == f"{tmp_path}/blank.jsonl holds no records"
    (tmp_path / "list.json").write_text("[]")
    assert wrong(tmp_path / "list.json").endswith("holds no records")
    assert "a file of records ends in .jsonl" in wrong(lines(tmp_path / "pairs.txt", GOOD))


OWN = Comparison(prompt=user_prompt("Hi"), responses=(reply("x"), reply("y")))
BAD_LINES = [
    (b'{"prompt": "a", "chosen": "b"', "cut line",
     "the last line is cut"),
    (b'{"prompt": "a\x00", "chosen": "b", "rejected": "c"}', "NUL character",
     "holds a NUL byte (byte 14)"),
    (b'{"prompt": "a\\u0000", "chosen": "b", "rejected": "c"}', "NUL character",
     "column 'prompt' holds a NUL"),
    (b'{"prompt": "a\xff", "chosen": "b", "rejected": "c"}', "not UTF-8",
     "column 'prompt' holds byte 0xff"),
    (b'{"prompt": "a", "chosen": "b\\ud800", "rejected": "c"}', "lone surrogate",
     "column 'chosen' holds a lone surrogate"),
    (b'{"prompt": "a", "chosen": "b", "chosen": "c"}', "not JSON",
     "'chosen' occurs twice"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "identical pair",
     "chosen and rejected are identical"),
    (b'{"prompt": "a", "chosen": " \\n", "rejected": "b"}', "empty answer",
     "chosen is empty"),
    (b'{"prompt": "a", "chosen": "", "rejected": "b"}', "empty answer",
     "chosen is empty"),
    (b'{"prompt": " ", "chosen": "a", "rejected": "b"}', "empty prompt",
     "the prompt is empty"),
    (b'{"prompt": "a", "choosen": "b", "rejected": "c"}', "missing column",
     "Did you mean 'choosen'?"),
    (b'{"prompt": "a", "chosen": null, "rejected": "c"}', "missing column",
     "column 'chosen' is null"),
    (b'{"prompt": "a", "chosen": 3, "rejected": "c"}', "wrong type",
     "chosen must be text or a list of messages; got int"),
    (b'{"prompt": "a", "chosen": ["b"], "rejected": "c"}', "wrong type",
     "chosen[0]: a message must be an object"),
    (b'{"prompt": [{"role": "human", "content": "a"}], "chosen": "b", "rejected": "c"}', "wrong type",
     "prompt[0]: role"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "c", "preference": 2}', "wrong preference",
     "preference=2: write"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "c", "preference": 1, "tie": true}', "wrong preference",
     "contradict"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}', "wrong type",
     "margin must be a finite number"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "c", "tools": "{"}', "wrong type",
     "tools is text that is not JSON"),
    (b'{"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x"]}', "not text",
     "the row has images"),
    (b'{"kind": "critique", "prompt": {}}', "wrong kind",
     "the row is a critique"),
    (json.dumps({**OWN.to_json(), "annotator": ["a"]}).encode(), "wrong type",
     "annotator must be text; got list"),
    (b'{"kind": "comparison", "responses": []}', "wrong type",
     "not a whole comparison record"),
    (b"[1]", "wrong type",
     "a record must be an object with columns; got a list"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason", "what"), BAD_LINES, ids=[f"{case[1]}: {case[2]}" for case in BAD_LINES])
def test_a_bad_line_is_named_or_counted(tmp_path: Path, bad: bytes, reason: str, what: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + bad)
    first, *rest = wrong(path).splitlines()
    assert first.startswith(f"{path}: 1 of 2 records cannot be used (1 {reason}); ")
    assert len(rest) == 1 and rest[0].startswith(f"  {path}:3: ") and what in rest[0]
    read = read_comparisons(path, on_bad="skip")
    assert [record.prompt.messages[0].content for record in read.records] == ["Name a colour."]
    assert (read.report.num_read, read.report.num_kept, read.report.dropped) == (2, 1, {reason: 1})
    assert [(problem.file, problem.line, problem.reason) for problem in read.report.problems] == [
        (str(path), 3, reason)
    ]
    assert read.report.notes == {"blank line": 1}


def test_an_error_counts_all_and_shows_the_first(tmp_path: Path) -> None:
    same, empty = {**GOOD, "rejected": "Blue."}, {**GOOD, "chosen": ""}
    path = lines(tmp_path / "a.jsonl", GOOD, *[same] * 6, empty)
    assert wrong(path).splitlines() == [
        f"{path}: 7 of 8 records cannot be used (6 identical pair, 1 empty answer); "
        "mend them, or drop and count them with on_bad='skip'",
        *[f"  {path}:{line}: chosen and rejected are identical" for line in range(2, 7)],
        "  and 2 more",
    ]
    assert "none is left" in wrong(lines(tmp_path / "b.jsonl", same), on_bad="skip")
    assert len(read_comparisons(path, limit=1).records) == 1, "what lies beyond the limit is not read"


def test_line_ends_and_separators_that_are_no_line_ends(tmp_path: Path) -> None:
    row = {**GOOD, "prompt": "a\u2028b\u0085c"}
    path = tmp_path / "a.jsonl"
    first, last = json.dumps(row, ensure_ascii=False).encode(), json.dumps(PAIRS[1]).encode()
    path.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n" + last)
    asked = [record.prompt.messages[0].content for record in read_comparisons(path).records]
    assert asked == ["a\u2028b\u0085c", "Name a number."]
    path.write_bytes(json.dumps(GOOD).encode("utf-16"))
    assert wrong(path) == f"{path} is UTF-16: save it as UTF-8"


def test_damaged_files_are_named_whatever_on_bad_says(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(PAIRS * 500)
    pq.write_table(table, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert f"{tmp_path}/a.parquet is not a whole Parquet file" in wrong(tmp_path / "a.parquet", on_bad="skip")
    packed = gzip.compress(b"".join(json.dumps({**GOOD, "n": n}).encode() + b"\n" for n in range(1000)))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    assert "is cut or damaged here" in wrong(tmp_path / "a.jsonl.gz", on_bad="skip")
    (tmp_path / "a.json").write_text(json.dumps(PAIRS, indent=1)[:-2])
    assert wrong(tmp_path / "a.json", on_bad="skip").endswith("the list is cut: no ']' at its end")
    (tmp_path / "b.json").write_text(json.dumps(PAIRS, indent=1)[:-20])
    assert "b.json:10: not a JSON list of objects" in wrong(tmp_path / "b.json")
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\na,b,c\na,"b\n')
    assert f"{tmp_path}/a.csv:3: the CSV breaks off" in wrong(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"prompt,chosen,rejected\na,b\xff,c\na,b\n")
    message = wrong(tmp_path / "b.csv")
    assert (
        "b.csv:2: column 'chosen' holds byte 0xff" in message and "b.csv:3: 2 cells, but the header names 3" in message
    )


def test_text_in_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(pa.string(), 2, pa.array([b"Blue.", b"Gr\xfcn."], pa.binary()).buffers())
    pq.write_table(pa.table({"prompt": ["a", "b"], "chosen": column, "rejected": ["x", "y"]}), tmp_path / "a.parquet")
    assert "a.parquet:2: column 'chosen' holds byte 0xfc that is not UTF-8" in wrong(tmp_path / "a.parquet")
    assert len(read_comparisons(tmp_path / "a.parquet", on_bad="skip").records) == 1


def test_lines_of_a_json_list_are_true_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, {**GOOD, "chosen": ""}, 3], indent=2))
    read = read_comparisons(tmp_path / "a.json", on_bad="skip")
    assert [problem.line for problem in read.report.problems] == [7, 12]


def test_oddities_are_kept_and_counted(tmp_path: Path) -> None:
    swapped = {**GOOD, "chosen": "Five.", "rejected": "Blue."}
    other = {**GOOD, "annotator": "second"}
    rows = [
        GOOD,
        GOOD,
        swapped,
        other,
        {**GOOD, "tie": True},
        {**PAIRS[1], "id": "1"},
        {**GOOD, "prompt": "?", "id": "1"},
    ]
    read = read_comparisons(lines(tmp_path / "a.jsonl", *rows))
    assert read.report.num_kept == 7
    assert read.report.warnings == {"duplicate": 1, "opposite labels": 1, "tie": 1, "duplicate id": 1}
    assert [(oddity.line, oddity.reason) for oddity in read.report.oddities] == [
        (2, "duplicate"), (3, "opposite labels"), (5, "tie"), (7, "duplicate id"),
    ]  # fmt: skip
    assert str(tmp_path / "a.jsonl:1") in str(read.report.oddities[1])
    prompts = read_prompts(lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "a"}))
    assert prompts.report.warnings == {"duplicate": 1}


def test_answers_not_to_imitate_and_conversations_without_one() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    assert "label is false" in wrong(rows, read_demonstrations)
    assert "no assistant turn" in wrong([{"messages": turns(("user", "Hi"))}], read_demonstrations)
    assert "no column 'completion' or 'response' or 'messages'" in wrong([{"prompt": "a"}], read_demonstrations)


def test_a_prompt_that_the_conversations_do_not_have() -> None:
    answers = {
        "chosen": turns(("user", "a"), ("assistant", "b")),
        "rejected": turns(("user", "a"), ("assistant", "c")),
    }
    assert "the prompt column is not the last turn before the answers" in wrong([{"prompt": "other", **answers}])
    other = turns(("user", "other"), ("assistant", "c"))
    assert "do not begin with the same prompt" in wrong([{**answers, "rejected": other}])


def test_wrong_arguments() -> None:
    assert "on_bad must be" in wrong([GOOD], on_bad="drop")
    assert "limit must be at least 1" in wrong([GOOD], limit=0)


def test_reading_needs_no_torch() -> None:
    code = "import sys, assay.feedback, assay.feedback.arrow; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "num_kept", "num_prompts", "warnings"),
    [
        ("pairs_hh_test_human_plus_relabel", 4029, 4028, {}),
        ("pairs_pku_saferlhf", 3302, 929, {}),
        ("pairs_hhh_alignment_221", 221, 102, {}),
        ("multiannot_pandalm", 945, 164, {"duplicate": 106, "tie": 84}),
        ("multiannot_dexperts_toxicity", 956, 120, {"duplicate": 1, "tie": 401}),
    ],
)
def test_real_pairs(name: str, num_kept: int, num_prompts: int, warnings: dict[str, int]) -> None:
    read = read_comparisons(shared(f"{name}.jsonl"))
    assert (read.report.num_read, read.report.num_kept, read.report.warnings) == (num_kept, num_kept, warnings)
    assert len({record.prompt.id for record in read.records}) == num_prompts


def test_real_votes_of_several_people() -> None:
    """Every vote on its own, by name, with what was shown first; ties and all."""
    votes = read_comparisons(shared("multiannot_dexperts_toxicity.jsonl"), objectives=("less_toxic",)).records
    assert len(votes) == 3 * 956
    assert {vote.annotator for vote in votes} == {"assignment0", "assignment1", "assignment2"}
    assert [sum(vote.preference == p for vote in votes) for p in (1, 0, 0.5)] == [503, 486, 1879]
    assert all(vote.meta["shown_first"] == ("rejected" if vote.preference == 0 else "chosen") for vote in votes)


def test_real_transcripts_give_back_their_turns(tmp_path: Path) -> None:
    pairs = read_comparisons(shared("pairs_hh_test_human_plus_relabel.jsonl")).records
    names = {"user": "Human", "assistant": "Assistant"}

    def transcript(turns: Any) -> str:
        return "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in turns)

    def contents(turns: Any) -> list[str]:
        return [turn.content.strip() for turn in turns]

    rows = [
        {name: transcript(pair.prompt.messages + getattr(pair, name)) for name in ("chosen", "rejected")}
        for pair in pairs
    ]
    read = read_comparisons(lines(tmp_path / "hh.jsonl", *rows))
    assert [contents(found.prompt.messages) for found in read.records] == [contents(p.prompt.messages) for p in pairs]
    assert [contents(found.chosen) for found in read.records] == [contents(p.chosen) for p in pairs]


def test_real_prompts_demonstrations_and_texts() -> None:
    assert read_prompts(shared("prompts_mix.jsonl")).report.warnings == {"duplicate": 83}
    shown = read_demonstrations(shared("sft_lima.jsonl")).records
    assert len(shown) == 1029 and all(record.response[0].role == "assistant" for record in shown)
    assert read_texts(shared("text_c4_wiki_demo.jsonl")).report.num_kept == 330


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_whatever_is_damaged_the_error_is_an_input_error(tmp_path: Path, name: str) -> None:
    rows = [{**GOOD, "prompt": turns(("user", "Grüße"))}, {**PAIRS[1], "prompt": turns(("user", "Bye"))}]
    path = tmp_path / name
    if name.endswith(".csv"):
        path.write_text('prompt,chosen,rejected\n"a ""b""",c,d\ne,"f\ng",h\n')
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    else:
        text = "\n".join(map(json.dumps, rows)).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    whole, draw, outcomes = path.read_bytes(), random.Random(name), set()
    for _ in range(150):
        damaged, place = bytearray(whole), draw.randrange(len(whole))
        match draw.randrange(4):
            case 0:
                damaged[place] = draw.randrange(256)
            case 1:
                del damaged[place : place + draw.randrange(1, 30)]
            case 2:
                damaged = damaged[: place + 1]
            case 3:
                damaged[place:place] = draw.choice([b"\0", b"\xff", b"\n", b'"', b"\xef\xbb\xbf", b"\\ud800"])
        path.write_bytes(damaged)
        try:
            read_comparisons(path, on_bad=draw.choice(["error", "skip"]))
            outcomes.add("read")
        except InputError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes
