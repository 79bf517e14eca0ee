import os
from pathlib import Path

import pytest

from assay.feedback import read_comparisons, write_records
from assay.records import Comparison, Finding, reply, user_prompt
from assay.settings import InputError

PAIR = Comparison(prompt=user_prompt("Hi"), responses=(reply("Hello"), reply("Go away")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, name: str) -> None:
    write_records(tmp_path / name, [PAIR])
    before = (tmp_path / name).read_bytes()
    bad = Comparison(prompt=user_prompt("Hi"), responses=(reply("\ud800"), reply("x")))
    with pytest.raises(InputError, match="was not written"):
        write_records(tmp_path / name, [PAIR, bad])
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_stop_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path / "a.jsonl", [PAIR])
    before = (tmp_path / "a.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_records(tmp_path / "a.jsonl", [PAIR, PAIR])
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz"):
        first, second = (write_records(tmp_path / side / name, [PAIR]).read_bytes() for side in ("one", "two"))
        assert first == second


def test_folders_are_made_and_text_is_readable(tmp_path: Path) -> None:
    record = Comparison(prompt=user_prompt("Grüße"), responses=(reply("ja"), reply("nein")))
    path = write_records(tmp_path / "new" / "a.jsonl", [record])
    assert "Grüße" in path.read_text(encoding="utf-8")
    assert read_comparisons(path).records == (record,)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no records to write"):
        write_records(tmp_path / "a.jsonl", [])
    with pytest.raises(InputError, match=r"records are written to \.jsonl"):
        write_records(tmp_path / "a.txt", [PAIR])
    with pytest.raises(InputError, match="a finding has no columns"):
        write_records(tmp_path / "a.jsonl", [Finding(probe="p", value=1.0, n=1)], columns=True)
    mixed = [PAIR, Comparison(prompt=user_prompt("Hi"), responses=(reply("x", plain=True), reply("y", plain=True)))]
    with pytest.raises(InputError, match=r"one Parquet column \(try \.jsonl\)"):
        write_records(tmp_path / "a.parquet", mixed, columns=True)
