"""A run directory: what a run leaves behind, by name. A crash leaves the old file or the new one, never half of one."""

import importlib.metadata
import json
import logging
import math
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from assay.settings import InputError

log = logging.getLogger(__name__)

PACKAGES = ("assay", "torch", "transformers", "peft", "numpy", "scipy", "safetensors", "gguf", "vllm", "ray")


def plain(value: Any) -> Any:
    """The value as strict JSON knows it: NaN and infinities become None, array scalars numbers, paths text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if hasattr(value, "tolist"):  # numpy and torch, arrays and scalars
        return plain(value.tolist())
    raise TypeError(f"no JSON for {type(value).__name__}: give numbers, text, lists, dictionaries or records")


def write_text(path: Path, text: str) -> Path:
    """Replace the file at once: a temporary file in the same folder, synced, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would hide the run from colleagues
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(value: Any) -> str:
    return json.dumps(plain(value), allow_nan=False)


def write_json(path: Path, data: Any) -> Path:
    """Write strict JSON atomically; NaN and infinities become null."""
    return write_text(path, json.dumps(plain(data), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's JSON. InputError names the file and line when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage that writes it") from None
    except json.JSONDecodeError as error:
        message = f"{path}, line {error.lineno}: not JSON ({error.msg}); run the stage that writes it again"
        raise InputError(message) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; run the stage that writes it again") from None


def read_jsonl(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The file's objects, and how many lines were left out: 1 when a crash cut the last one, else 0.

    InputError names any other line that is not an object.
    """
    lines = path.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {type(row).__name__}")
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write never ended
                return rows, 1
            raise InputError(f"{path}, line {number}: not a JSON object ({error}); repair or remove the line") from None
        rows.append(row)
    return rows, 0


def _mend(path: Path) -> None:
    """Cut off the unfinished last line that a crash left, so that the next one starts on its own."""
    rows, num_cut = read_jsonl(path)
    if num_cut:
        log.warning("%s: dropped 1 line that was cut off", path)
    write_text(path, "".join(_line(row) + "\n" for row in rows))


def environment() -> dict[str, Any]:
    """The software and machine of this process, for provenance; imports nothing and names no user or host."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "packages": packages,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt answered before and after training; a reward or oracle that was not measured is None."""

    prompt: str
    base: str
    policy: str
    base_reward: float | None = None
    policy_reward: float | None = None
    base_oracle: float | None = None
    policy_oracle: float | None = None

    def to_json(self) -> dict[str, Any]:
        """One row of samples.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From a row; other keys are ignored. ValueError names a missing or mistyped one."""
        for key in ("prompt", "base", "policy"):
            if not isinstance(data.get(key), str):
                raise ValueError(f"{key} must be text")
        found = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        for key, value in found.items():
            if key.endswith(("_reward", "_oracle")) and not (value is None or isinstance(value, int | float)):
                raise ValueError(f"{key} must be a number or null")
        return cls(**found)


class RunDirectory:
    """The files of one run, each a Path that may not exist yet: `run.audit`, `run.metrics`, `run.reward`, ..."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.feedback = self.path / "feedback.jsonl"
        self.reward = self.path / "reward"
        self.policy = self.path / "policy"
        self.audit = self.path / "audit.json"
        self.evaluation = self.path / "evaluation.json"
        self.samples = self.path / "samples.jsonl"
        self.provenance = self.path / "provenance.json"
        self.report = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def write_config(self, config: Mapping[str, Any], stage: str = "") -> Path:
        """Write the resolved configuration as YAML, keys in the order given; with `stage`, as that stage's section."""
        if stage:
            config = {**(self.read_config() if self.config.exists() else {}), stage: config}
        text = StringIO()
        YAML().dump(plain(config), text)
        return write_text(self.config, text.getvalue())

    def read_config(self) -> dict[str, Any]:
        """The configuration as plain dictionaries. InputError when it is absent or not a YAML mapping."""
        try:
            config = YAML(typ="safe", pure=True).load(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.config}: no such file; the stage that ran here writes it") from None
        except (YAMLError, UnicodeDecodeError) as error:
            first = str(error).splitlines()[0]
            raise InputError(f"{self.config}: not YAML ({first}); repair it or run again") from None
        if not isinstance(config, dict):
            raise InputError(f"{self.config}: expected a mapping at the top, got {type(config).__name__}")
        return config

    def append_metrics(self, step: int, values: Mapping[str, Any], stage: str = "") -> None:
        """Add one line to metrics.jsonl and flush it. `stage` tells apart stages that share the file."""
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise InputError(f"append_metrics: step must be a whole number >= 0; got {step!r}")
        if clash := {"step", "stage"} & set(values):
            raise InputError(f"append_metrics: {', '.join(sorted(clash))} must not be among the values")
        row = {"step": step, **({"stage": stage} if stage else {}), **values}
        line = _line(row).encode() + b"\n"
        self.path.mkdir(parents=True, exist_ok=True)
        if self.metrics.exists() and not _ends_with_newline(self.metrics):
            _mend(self.metrics)
        with self.metrics.open("ab") as file:
            file.write(line)

    def read_metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, of one stage when it is named; without a last line that a crash cut."""
        if not self.metrics.exists():
            return []
        rows, _ = read_jsonl(self.metrics)
        return rows if stage is None else [row for row in rows if row.get("stage", "") == stage]

    def resume_metrics(self, step: int, stage: str = "") -> int:
        """Drop what a resumed run will write again: the stage's lines at or beyond `step`. Returns how many went."""
        if not self.metrics.exists():
            return 0
        rows, num_cut = read_jsonl(self.metrics)
        kept = [row for row in rows if row.get("stage", "") != stage or row.get("step", 0) < step]
        num_dropped = len(rows) - len(kept) + num_cut
        if num_dropped:
            write_text(self.metrics, "".join(_line(row) + "\n" for row in kept))
        return num_dropped

    def write_samples(self, samples: Iterable[Sample]) -> Path:
        """Replace samples.jsonl."""
        return write_text(self.samples, "".join(_line(sample) + "\n" for sample in samples))

    def read_samples(self) -> list[Sample]:
        """The rows of samples.jsonl; none when it is absent. InputError names a row that is not a sample."""
        if not self.samples.exists():
            return []
        samples = []
        for number, row in enumerate(read_jsonl(self.samples)[0], start=1):
            try:
                samples.append(Sample.from_json(row))
            except ValueError as error:
                raise InputError(f"{self.samples}, row {number}: {error}; write it with write_samples") from None
        return samples

    def record(self, stage: str, **facts: Any) -> Path:
        """Note in provenance.json what a stage used (seed, data hashes, counts dropped, ...) beside `environment()`.

        A later call for the same stage replaces what it noted.
        """
        known = read_json(self.provenance) if self.provenance.exists() else {}
        return write_json(self.provenance, {**known, stage: {**facts, "environment": environment()}})


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
