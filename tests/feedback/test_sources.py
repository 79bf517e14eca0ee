import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.feedback import read_comparisons, read_demonstrations, read_prompts, write_records
from assay.records import Comparison, Demonstration, Message, Prompt, Rollout, reply, user_prompt
from assay.settings import InputError
from feedback.rows import PAIRS, lines, turns


def rows_of(source: Any, **options: Any) -> list[str]:
    return [record.prompt.messages[0].content for record in read_comparisons(source, **options).records]


WANTED = [row["prompt"] for row in PAIRS]


def test_files(tmp_path: Path) -> None:
    assert rows_of(lines(tmp_path / "a.jsonl", *PAIRS)) == WANTED
    assert rows_of(lines(tmp_path / "lines.json", *PAIRS)) == WANTED
    (tmp_path / "list.json").write_text("\ufeff" + json.dumps(PAIRS, indent=2))
    assert rows_of(tmp_path / "list.json") == WANTED
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert rows_of(str(tmp_path / "a.jsonl.gz")) == WANTED
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == WANTED
    text = 'prompt,chosen,rejected\r\n"Name\na ""colour"".",Blue.,Five.\r\nName a number.,Five.,Blue.\r\n'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert rows_of(tmp_path / "a.csv") == ['Name\na "colour".', "Name a number."]


def test_messages_in_csv_and_parquet(tmp_path: Path) -> None:
    asked = turns(("user", "Hi"))
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\n"' + json.dumps(asked).replace('"', '""') + '",[1],b\n')
    (record,) = read_comparisons(tmp_path / "a.csv").records
    assert record.prompt.messages == (Message("user", "Hi"),) and record.chosen == reply("[1]")
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    table = pa.Table.from_pylist([{"prompt": asked, "chosen": [call], "rejected": turns(("assistant", "No"))}])
    pq.write_table(table, tmp_path / "a.parquet")
    (record,) = read_comparisons(tmp_path / "a.parquet").records
    assert record.chosen[0].extra == {"tool_calls": [{"name": "f"}]}
    assert record.rejected[0].extra == {}, "the nulls that Parquet puts where a row has no such key are left out"


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "train-00000-of-00002.jsonl", PAIRS[0])
    lines(tmp_path / "data" / "train-00001-of-00002.jsonl", PAIRS[1])
    assert rows_of(tmp_path) == WANTED
    lines(tmp_path / "data" / "test-00000-of-00001.jsonl", PAIRS[1])
    assert rows_of(tmp_path, split="test") == WANTED[1:]
    with pytest.raises(InputError, match="holds the splits 'test', 'train': choose one with split="):
        read_comparisons(tmp_path)
    with pytest.raises(InputError, match=r"no split 'tset'.*Did you mean 'test'"):
        read_comparisons(tmp_path, split="tset")
    with pytest.raises(InputError, match="is one file"):
        read_comparisons(tmp_path / "data" / "test-00000-of-00001.jsonl", split="test")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no file of records"):
        read_comparisons(tmp_path / "none")


def test_saved_hugging_face_folders(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(PAIRS)
    data.save_to_disk(tmp_path / "one")
    assert rows_of(tmp_path / "one") == WANTED
    assert rows_of(data) == WANTED
    datasets.DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "two")
    assert rows_of(tmp_path / "two", split="test") == WANTED[1:]
    with pytest.raises(InputError, match="holds the splits 'test', 'train'"):
        read_comparisons(tmp_path / "two")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(InputError, match=r"lacks data-00000-of-00001\.arrow"):
        read_comparisons(tmp_path / "one")


def test_hub_without_network_and_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nobody/nothing is no file or folder here, and the hub did not give it"):
        read_comparisons("nobody/nothing")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'assay\[hub\]'"):
        read_comparisons("nobody/nothing")


def test_hub_gives_rows_and_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, configuration: str | None, split: str | None) -> Any:
        asked.append((name, configuration, split))
        whole = datasets.DatasetDict(
            train=datasets.Dataset.from_list(PAIRS), test=datasets.Dataset.from_list(PAIRS[1:])
        )
        return whole if split is None else whole[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert rows_of("owner/name:config", split="test") == WANTED[1:]
    assert asked == [("owner/name", "config", "test")]
    with pytest.raises(InputError, match="owner/name holds the splits 'test', 'train'"):
        read_comparisons("owner/name")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("columns", [False, True])
def test_round_trip(tmp_path: Path, name: str, columns: bool) -> None:
    call = Message("assistant", "", {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]})
    asked = user_prompt("Hi\u2028there 🎈", tools=({"name": "f"},), template_kwargs={"thinking": True})
    pairs = (
        Comparison(prompt=asked, responses=((call,), reply("No")), annotator="a", meta={"margin": 2.0, "n": [1, 2]}),
        Comparison(prompt=user_prompt("Tie"), responses=(reply("x"), reply("y")), preference=0.5, objective="safe"),
    )
    assert read_comparisons(write_records(tmp_path / name, pairs, columns=columns)).records[1] == pairs[1]
    assert read_comparisons(tmp_path / name).records[0].responses == pairs[0].responses
    shown = (Demonstration(prompt=user_prompt("Hi"), response=reply("Yo"), source="s", meta={"k": "v"}),)
    assert read_demonstrations(write_records(tmp_path / name, shown, columns=columns)).records == shown
    for prompt in (user_prompt("Hi", id="p", meta={"answer": 4}), Prompt(messages=(Message("text", "Once"),))):
        assert read_prompts(write_records(tmp_path / name, [prompt], columns=columns)).records == (prompt,)


def test_own_files_keep_everything(tmp_path: Path) -> None:
    pair = Comparison(
        prompt=user_prompt("Hi", meta={"a": {"b": None}}),
        responses=(reply("x"), reply("y")),
        preference=0.3,
        meta={"z": [{}]},
    )
    for name in ("a.jsonl", "a.parquet"):
        assert read_comparisons(write_records(tmp_path / name, [pair])).records == (pair,)
        (asked,) = read_prompts(tmp_path / name).records
        assert asked == replace(pair.prompt, meta={**pair.meta, **pair.prompt.meta})
    rollout = Rollout(
        prompt=user_prompt("Hi"), response=reply("x"), stop="stop", ids=(1, 2), sampler_logprobs=(-0.5, -1.0)
    )
    for name in ("r.jsonl", "r.parquet"):
        assert read_prompts(write_records(tmp_path / name, [rollout])).records == (rollout.prompt,)
    assert "reward" not in json.loads((tmp_path / "r.jsonl").read_text())
    with pytest.raises(InputError, match="the row is a comparison, where a demonstration is needed"):
        read_demonstrations(tmp_path / "a.jsonl")


def test_a_prefers_second_label_written_for_other_tools_swaps_the_answers(tmp_path: Path) -> None:
    pair = Comparison(prompt=user_prompt("Hi"), responses=(reply("x"), reply("y")), preference=0.25)
    (record,) = read_comparisons(write_records(tmp_path / "a.jsonl", [pair], columns=True)).records
    assert (record.chosen, record.rejected, record.preference) == (reply("y"), reply("x"), 0.75)
