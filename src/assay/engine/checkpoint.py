"""Checkpoints that survive a kill at any moment: safetensors and JSON, a manifest written last, then a rename.

A folder without a manifest, or whose files do not match it, is no checkpoint. Older ones are removed only after the
new one is in place.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from assay.settings import InputError

logger = logging.getLogger("assay")

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
REPLACED = ".replaced-"  # before the step, while another checkpoint of it takes its place


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved after `step` optimiser steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 1
) -> Path:
    """Write `folder/step-N`, then remove all but the newest `keep`. Raises OSError if the disk is too full."""
    folder.mkdir(parents=True, exist_ok=True)
    _mend(folder)
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)  # a save that was killed
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder}: a checkpoint needs {needed:,} bytes and {free:,} are free; the older one is intact")
    place = folder / f".step-{step}"
    place.mkdir()
    try:
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, place / TENSORS)
        (place / STATE).write_text(json.dumps({"step": step, **state}, indent=1))
        for name in (TENSORS, STATE):
            _sync(place / name)
        sums = {name: _sha256(place / name) for name in (TENSORS, STATE)}
        (place / MANIFEST).write_text(json.dumps(sums, indent=1))
        _sync(place / MANIFEST)
        _sync(place)
        final = folder / f"step-{step}"
        if (final / MANIFEST).exists() and (final / MANIFEST).read_text() == json.dumps(sums, indent=1):
            shutil.rmtree(place)  # saved before, byte for byte
        else:
            replaced = folder / f"{REPLACED}{step}"
            if final.exists():
                final.rename(replaced)  # a kill from here on leaves one of the two to `_mend`
            place.rename(final)
            shutil.rmtree(replaced, ignore_errors=True)
        _sync(folder)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    _prune(folder, step, keep)
    return final


def _mend(folder: Path) -> None:
    """Undo or finish what a kill broke off while a checkpoint took the place of another of its step."""
    for replaced in folder.glob(f"{REPLACED}*"):
        final = folder / f"step-{replaced.name.removeprefix(REPLACED)}"
        if (final / MANIFEST).exists():
            shutil.rmtree(replaced)
        else:
            shutil.rmtree(final, ignore_errors=True)
            replaced.rename(final)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` complete ones; `step`, which was just published, always stays."""
    steps = _steps(folder)
    kept = {step, *[old for old in steps if (folder / f"step-{old}" / MANIFEST).exists()][:keep]}
    for old in steps:
        if old not in kept:
            (folder / f"step-{old}" / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed one is none
            shutil.rmtree(folder / f"step-{old}")


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint under `folder`, None if there is none.

    One that a kill cut short is passed over with a warning; one whose bytes changed since is an error.
    """
    _mend(folder)
    for left in sorted(folder.glob(".step-*")):
        logger.warning("%s: passed over, its save was cut short", left)
    for step in _steps(folder):
        place = folder / f"step-{step}"
        if not (place / MANIFEST).exists():
            logger.warning("%s: passed over, it has no manifest", place)
            continue
        for name, expected in _manifest(place).items():
            if not (place / name).exists() or _sha256(place / name) != expected:
                raise InputError(f"{place / name}: damaged, its checksum differs; remove {place} to go on without it")
        state = json.loads((place / STATE).read_text())
        return Checkpoint(state.pop("step"), load_file(place / TENSORS), state)
    return None


def _manifest(place: Path) -> dict[str, str]:
    """The checksums by file; both files must be among them."""
    try:
        sums = json.loads((place / MANIFEST).read_text())
        return {name: sums[name] for name in (TENSORS, STATE)}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{place / MANIFEST}: damaged; remove {place} to go on without it") from None


def _steps(folder: Path) -> list[int]:
    """Steps that have a folder, newest first."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
