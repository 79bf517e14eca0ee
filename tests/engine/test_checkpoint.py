"""Whatever happens during a save, a whole checkpoint is left."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from assay.engine import checkpoint
from assay.engine.checkpoint import load_checkpoint, save_checkpoint
from assay.settings import InputError


def state(step: int):
    return {"weights": torch.full((3, 2), float(step)), "step": torch.tensor(step)}, {"batches": {"drawn": step}}


def save(folder: Path, step: int, keep: int = 1) -> Path:
    return save_checkpoint(folder, step, *state(step), keep)


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_what_is_loaded(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save(tmp_path, 3)
    found = load_checkpoint(tmp_path)
    assert found is not None and found.step == 3 and found.state == {"batches": {"drawn": 3}}
    assert torch.equal(found.tensors["weights"], torch.full((3, 2), 3.0))


class Killed(BaseException):
    """As sudden as a signal: no `except Exception` sees it."""


WRITES = ("save_file", "write_text", "fsync", "_sha256", "rename", "unlink", "rmtree")


def each_write(monkeypatch, kill_at: int, *, cleans_up: bool) -> None:
    """The `kill_at`th step of a save raises instead. A real kill leaves what was written: nothing is cleaned up."""
    count = 0
    removed = shutil.rmtree

    def counted(function, *, before=True):
        def call(*args, **options):
            nonlocal count
            count += 1
            if count > kill_at:
                raise Killed  # after its death a process does nothing
            if count == kill_at and before:
                raise Killed
            return function(*args, **options)

        return call

    monkeypatch.setattr(checkpoint, "save_file", counted(checkpoint.save_file))
    monkeypatch.setattr(checkpoint, "_sha256", counted(checkpoint._sha256))
    monkeypatch.setattr(checkpoint.os, "fsync", counted(os.fsync))
    for name in ("write_text", "rename", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    if not cleans_up:
        removed = counted(shutil.rmtree)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", removed)


def deaths(folder: Path, monkeypatch, act: Callable[[Path], object], *, cleans_up: bool) -> Iterator[tuple[Path, bool]]:
    """Folders with a checkpoint of step 2 in which `act` died, each at a later write; and one in which it did not."""
    for kill_at in range(1, 40):
        place = folder / str(kill_at)
        save(place, 2)
        with monkeypatch.context() as patch:
            each_write(patch, kill_at, cleans_up=cleans_up)
            try:
                act(place)
                died = False
            except Killed:
                died = True
        yield place, died
        if not died:
            assert kill_at > 8, "the fault was not put at every write"
            return
    pytest.fail("it never lived")


BOTH = pytest.mark.parametrize("cleans_up", [True, False], ids=["exception", "kill"])


@BOTH
def test_a_save_that_dies_anywhere_leaves_a_checkpoint(tmp_path, monkeypatch, cleans_up, caplog):
    seen = set()
    for folder, _ in deaths(tmp_path, monkeypatch, lambda place: save(place, 4), cleans_up=cleans_up):
        caplog.clear()
        found = load_checkpoint(folder)
        assert found is not None and found.step in (2, 4), f"killed at write {folder.name}"
        assert float(found.tensors["weights"][0, 0]) == found.step
        seen.add(found.step)
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert all(any(name in line.getMessage() for line in caplog.records) for name in left)
        save(folder, 6)  # and the next save goes through and tidies up
        assert steps(folder) == ["step-6"]
    assert seen == {2, 4}


@BOTH
def test_another_state_of_a_step_that_dies_anywhere_leaves_either(tmp_path, monkeypatch, cleans_up):
    def act(place):
        save_checkpoint(place, 2, {"weights": torch.zeros(1)}, {})

    seen = set()
    for folder, died in deaths(tmp_path, monkeypatch, act, cleans_up=cleans_up):
        found = load_checkpoint(folder)
        assert found is not None and found.step == 2
        seen.add(len(found.tensors["weights"]))
        assert died or seen == {1, 3}
        assert [name for name in steps(folder) if not name.startswith(".step-")] == ["step-2"]
    assert seen == {1, 3}


def test_a_kill_during_removal_leaves_the_new_one(tmp_path, monkeypatch):
    save(tmp_path, 2)
    real = shutil.rmtree

    def half(path, **_):
        (Path(path) / "tensors.safetensors").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint.shutil, "rmtree", lambda path, **o: half(path) if "step-2" in str(path) else real(path, **o)
        )
        with pytest.raises(Killed):
            save(tmp_path, 4)
    assert load_checkpoint(tmp_path).step == 4
    shutil.rmtree(tmp_path / "step-4")
    assert load_checkpoint(tmp_path) is None  # a half-removed one is none, not a damaged one


def test_a_second_save_of_a_step_never_leaves_a_moment_without(tmp_path, monkeypatch):
    save(tmp_path, 2)
    real = shutil.rmtree

    def watched(path, **options):
        assert Path(path).name != "step-2"
        real(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", watched)
    assert save(tmp_path, 2) == tmp_path / "step-2"
    assert load_checkpoint(tmp_path).step == 2 and steps(tmp_path) == ["step-2"]


@pytest.mark.parametrize(
    "keep, left", [(1, ["step-8"]), (2, ["step-6", "step-8"]), (9, ["step-2", "step-4", "step-6", "step-8"])]
)
def test_the_newest_are_kept(tmp_path, keep, left):
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep)
    assert steps(tmp_path) == left


def test_a_broken_later_folder_does_not_cost_the_new_one(tmp_path):
    (tmp_path / "step-9").mkdir()
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path).step == 2


def test_no_manifest_is_passed_over_with_a_warning(tmp_path, caplog):
    save(tmp_path, 2)
    save(tmp_path, 10, keep=2)
    (tmp_path / "step-10" / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, "assay"):
        assert load_checkpoint(tmp_path).step == 2
    assert "step-10: passed over, it has no manifest" in caplog.text


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def truncate(path: Path, place: int) -> None:
    path.write_bytes(path.read_bytes()[:place])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("place", [0, 9, -1])
@pytest.mark.parametrize("harm", [flip, truncate])
def test_a_damaged_file_is_named(tmp_path, name, place, harm):
    save(tmp_path, 2)
    harm(tmp_path / "step-2" / name, place)
    with pytest.raises(InputError, match=rf"step-2/{name}: damaged.*remove .*step-2 to go on"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"state.json": "0"})])
def test_a_damaged_manifest_is_named(tmp_path, text):
    save(tmp_path, 2)
    (tmp_path / "step-2" / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"step-2/manifest\.json: damaged"):
        load_checkpoint(tmp_path)


def test_a_lost_file_is_named(tmp_path):
    save(tmp_path, 2)
    (tmp_path / "step-2" / "tensors.safetensors").unlink()
    with pytest.raises(InputError, match=r"tensors\.safetensors: damaged"):
        load_checkpoint(tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=16))
    with pytest.raises(OSError, match=r"needs 32 bytes and 16 are free; the older one is intact"):
        save(tmp_path, 4)  # six fp32 numbers and one int64
    assert steps(tmp_path) == ["step-2"] and load_checkpoint(tmp_path).step == 2


def test_a_disk_that_fills_up_during_the_save_loses_nothing(tmp_path, monkeypatch):
    save(tmp_path, 2)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 4)
    assert steps(tmp_path) == ["step-2"] and load_checkpoint(tmp_path).step == 2
