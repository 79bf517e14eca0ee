"""Where rows come from: a file, a folder of files or splits, or a data set on the Hugging Face hub."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from assay.feedback.sources import SUFFIXES, Found, checked, file_rows, is_path, memory_rows, missing
from assay.settings import InputError, nearest

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def rows(source: Any, split: str | None) -> Found:
    """The rows of any source; `split` chooses one where it has several."""
    if not is_path(source):
        if split is not None:
            raise InputError(f"split={split!r} was asked of records in memory, which have no splits: drop split")
        return memory_rows(source)
    path = Path(source)
    if path.is_dir():
        return _folder_rows(path, split)
    if path.is_file():
        if split is not None:
            raise InputError(f"split={split!r} was asked of {path}, which is one file: drop split or name the folder")
        return file_rows(path)
    if HUB_ID.fullmatch(str(source)) and not path.name.lower().endswith(SUFFIXES):
        return _hub_rows(str(source), split)
    raise missing(path)


def _folder_rows(folder: Path, split: str | None) -> Found:
    from assay.feedback.arrow import is_saved, saved_rows

    if is_saved(folder):
        if split is not None:
            raise InputError(f"split={split!r} was asked of {folder}, which holds one data set without splits")
        yield from saved_rows(folder)
        return
    if (folder / "dataset_dict.json").is_file():
        known = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        yield from saved_rows(folder / _choose(known, split, folder))
        return
    files = _record_files(folder)
    wanted = _choose({_split_of(path, folder) for path in files}, split, folder)
    for path in files:
        if _split_of(path, folder) == wanted:
            yield from file_rows(path)


def _record_files(folder: Path) -> list[Path]:
    hidden = re.compile(r"(^|/)[._]")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(SUFFIXES)
        and path.name not in DESCRIPTIONS
        and not hidden.search(path.relative_to(folder).as_posix())
    )
    if not found:
        raise InputError(f"{folder} holds no file of records ({', '.join(SUFFIXES)}) and no saved data set")
    return found


def _split_of(path: Path, folder: Path) -> str:
    """The split a file belongs to by its name, then by its folder's; '' when neither says."""
    name = SHARD.sub("", path.name.partition(".")[0])
    parents = reversed(path.relative_to(folder).parts[:-1])
    return next((part for part in (name, *parents) if re.split(r"[-_]", part)[0] in SPLITS), "")


def _choose(known: Iterable[str], split: str | None, where: Any) -> str:
    known = sorted(known)
    if split is None and len(known) == 1:
        return known[0]
    if split in known:
        return str(split)
    names = ", ".join(repr(name) for name in known if name) or "none"
    if split is None:
        raise InputError(f"{where} holds the splits {names}: choose one with split=")
    raise InputError(f"{where} has no split {split!r}; it holds: {names}.{nearest(split, known)}")


def _hub_rows(name: str, split: str | None) -> Found:
    """A data set of the hub: "owner/name" or "owner/name:configuration"."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{name} is no file or folder here, and reading it from the hub needs the package datasets: "
            f"pip install 'assay[hub]'"
        ) from error
    repository, _, configuration = name.partition(":")
    try:
        loaded: Any = datasets.load_dataset(repository, configuration or None, split=split)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name} is no file or folder here, and the hub did not give it ({type(error).__name__}: {first}): "
            f"check the name and the network, or download it and give its folder"
        ) from error
    if isinstance(loaded, dict):
        loaded = loaded[_choose(loaded, None, name)]
    from assay.feedback.arrow import plain

    for number, data in enumerate(loaded, 1):
        yield checked(name, number, {column: plain(value) for column, value in data.items()})
