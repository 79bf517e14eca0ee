"""Which model a name means: the embedded default, a local folder or a hub id, checked before anything is loaded."""

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from assay.engine import embedded
from assay.settings import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("assay")

DEFAULT_MODEL = embedded.NAME
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
SHARDED = "model.safetensors.index.json"
OLD_SHARDED = "pytorch_model.bin.index.json"
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("tekken.json",),
)
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
PAD_WORDS = re.compile(r"(?i)(^|[^a-z])pad(ding)?([^a-z]|$)")
RESERVED_WORDS = re.compile(r"(?i)reserved|unused|extra_id")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model at hand, or the default before its first use."""

    name: str  # what the user writes
    path: str  # the local folder that transformers loads
    origin: str  # where it came from, in words
    revision: str = ""  # hub commit, or SHA-256 of the default's wheel; "" for a folder of the user's own
    present: bool = True


def resolve_model(name: str) -> ModelSource:
    """The model that `name` means, on this disk and complete.

    `name` is "smollm2-135m-instruct" (made on first use), a local folder, or a hub id owner/name or
    owner/name@revision (fetched unless cached). Code that comes with a model never runs.
    Raises InputError with what is wrong and what to do.
    """
    if name == DEFAULT_MODEL:
        embedded.make_default()
        return _default()
    folder = local_path(name)
    if folder.exists():
        return _local(name, folder)
    if found := HUB_ID.fullmatch(name):
        return _from_hub(name, found["id"], found["revision"])
    raise InputError(f"no model {name!r}: {_not_found(name, folder)}")


def local_path(name: str) -> Path:
    """Where a folder of that name would be; the home of somebody unknown is taken as it is written."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def list_models() -> list[ModelSource]:
    """The default, made or not, then the complete models of the Hugging Face cache. Loads nothing."""
    return [_default(), *_cached_models()]


def load_tokenizer(source: ModelSource | str) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, its pad token certainly not its EOS (scoring finds the last token by skipping pads).

    A pad that is missing or the EOS is replaced by a special token of the vocabulary that nothing uses, with a line
    in the log; the vocabulary never grows. Raises InputError when there is no such token, or the files can't be read.
    """
    from transformers import AutoTokenizer

    source = resolve_model(source) if isinstance(source, str) else source
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        why = "it needs code of its own, which never runs" if "trust_remote_code" in str(error) else _one_line(error)
        raise InputError(f"the tokenizer of {source.name} can't be loaded: {why}") from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        pad = _unused_token(tokenizer, _stop_ids(Path(source.path)))
        if pad is None:
            raise InputError(
                f"the tokenizer of {source.name} has no pad token apart from its EOS {tokenizer.eos_token!r} and no "
                "unused special token: add one (tokenizer.add_special_tokens({'pad_token': '<pad>'}), "
                "model.resize_token_embeddings(len(tokenizer))), save both, and name that folder"
            )
        log.warning("tokenizer of %s: pad token was %s, is now %s", source.name, tokenizer.pad_token, pad)
        tokenizer.pad_token = pad
    return tokenizer


VOCABULARIES = ("merges.txt", "vocab.txt")


def hash_of_folder(folder: str) -> str:
    """16 hexadecimal digits of a model folder's weights and settings, and of its tokenizer's files."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*")):
        if path.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model") or path.name in VOCABULARIES:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def check_folder(folder: Path) -> None:
    """Raises InputError unless the folder holds config.json, weights that are whole, and a tokenizer."""
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: name the folder that holds config.json, the weights and the tokenizer")
    _check_config(folder)
    _check_weights(folder)
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        raise InputError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt): "
            "save the tokenizer there too, tokenizer.save_pretrained(folder)"
        )


def _check_config(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(f"{folder} holds an adapter, not a whole model: merge it into its base model first")
        raise InputError(f"{folder} has no config.json: name a folder that save_pretrained wrote")
    settings = _json_object(config)
    if "model_type" not in settings:
        raise InputError(f"{config} has no model_type: it is not a transformers model's configuration")


def _check_weights(folder: Path) -> None:
    for name in _weight_files(folder):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{folder} lacks {name}, a part of its weights: copy or download it again")
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def _weight_files(folder: Path) -> list[str]:
    for single, index in (("model.safetensors", SHARDED), ("pytorch_model.bin", OLD_SHARDED)):
        if (folder / single).is_file():
            return [single]
        if (folder / index).is_file():
            shards = _json_object(folder / index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise InputError(f"{folder / index} has no weight_map: copy or download it again")
            return sorted(set(shards.values()))
    raise InputError(f"{folder} has no weights (model.safetensors, {SHARDED} or pytorch_model.bin)")


def _check_safetensors(path: Path) -> None:
    """Whether the header is readable and the file as long as it says; reads no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} can't be read as safetensors, it may be cut short or a Git LFS pointer: copy or download it "
            f"again ({_one_line(error)})"
        ) from error


def _json_object(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as JSON: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object; got {type(data).__name__}")
    return data


def _default() -> ModelSource:
    folder = embedded.default_folder()
    state = embedded.damage(folder, embedded.MADE_FROM)
    origin = embedded.ORIGIN + ("; made on first use (93 MB to download)" if state else "")
    return ModelSource(DEFAULT_MODEL, str(folder), origin, f"sha256:{embedded.WHEEL_SHA256}", present=not state)


def _local(name: str, folder: Path) -> ModelSource:
    check_folder(folder)
    return ModelSource(name, str(folder.resolve()), "local folder")


def _not_found(name: str, folder: Path) -> str:
    """What to write instead of a name that is neither a folder nor a hub id."""
    if "/" in name or "\\" in name:
        return f"there is no such folder{_sibling(folder) if folder.parent.is_dir() else f', nor {folder.parent}'}"
    return f"it is no folder here{_sibling(folder)}; the default is {DEFAULT_MODEL}; a hub id has the form owner/name"


def _sibling(folder: Path) -> str:
    """'; did you mean X?' for the folder beside it with the closest name, '' when none is close."""
    if not folder.parent.is_dir():
        return ""
    names = [path.name for path in folder.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    close = difflib.get_close_matches(folder.name, names, n=1, cutoff=0.5)
    return f"; did you mean {str(folder.parent / close[0])!r}?" if close else ""


def _from_hub(name: str, hub_id: str, revision: str | None) -> ModelSource:
    from huggingface_hub import errors, snapshot_download

    instead = _sibling(local_path(name)) or "; a local folder works too"
    try:
        # Top level only: repositories keep copies for other runtimes in subfolders.
        path = Path(snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
        if not list(path.glob("*.safetensors")):
            snapshot_download(hub_id, revision=path.name, allow_patterns=[*HUB_FILES, "*.bin"], ignore_patterns=["*/*"])
    except errors.GatedRepoError as error:
        raise InputError(f"{hub_id} is gated: accept its licence on its hub page, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"the hub has no model {hub_id}, or hides it until `hf auth login`{instead}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{hub_id} has no revision {revision!r} on the hub") from error
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        cached = _cached_snapshot(hub_id, revision)
        if cached is None:
            raise InputError(
                f"{hub_id} is not in the Hugging Face cache and can't be fetched ({_one_line(error)}){instead}"
            ) from error
        path = cached
    check_folder(path)
    return ModelSource(name, str(path), f"Hugging Face hub, {hub_id}", path.name)


def _cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """A snapshot that another program cached, perhaps without files that only Assay asks for."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _cached_models() -> Iterator[ModelSource]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    for repository in sorted(cache.repos, key=lambda repository: repository.repo_id):
        if repository.repo_type != "model":
            continue
        for snapshot in sorted(repository.revisions, key=lambda snapshot: snapshot.last_modified, reverse=True):
            try:
                check_folder(snapshot.snapshot_path)
            except InputError as error:
                log.info("not listed: %s", error)
                continue
            name = repository.repo_id if "main" in snapshot.refs else f"{repository.repo_id}@{snapshot.commit_hash}"
            yield ModelSource(name, str(snapshot.snapshot_path), "Hugging Face cache", snapshot.commit_hash)


def _stop_ids(folder: Path) -> set[int]:
    """Every id that ends a generation, of which a tokenizer knows only one."""
    path = folder / "generation_config.json"
    stops = _json_object(path).get("eos_token_id") if path.is_file() else None
    return set(stops) if isinstance(stops, list) else {stops} if isinstance(stops, int) else set()


def _unused_token(tokenizer: "PreTrainedTokenizerBase", stops: set[int]) -> str | None:
    """A special token of the vocabulary without a role: a pad by name, <|endoftext|>, a reserved one, the unknown."""
    template = str(tokenizer.chat_template or "")
    known = tokenizer.special_tokens_map
    roles = {known.get(f"{role}_token") for role in ("bos", "eos", "sep", "cls", "mask")}
    special = {token.content: index for index, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special}
    free = [token for token, index in special.items() if token not in roles | {""} and index not in stops]
    free = [token for token in free if token not in template]
    wanted = (
        lambda token: PAD_WORDS.search(token) and token != tokenizer.unk_token,
        lambda token: token == "<|endoftext|>",
        lambda token: RESERVED_WORDS.search(token),
        lambda token: token == tokenizer.unk_token,
    )
    return next((token for fits in wanted for token in free if fits(token)), None)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
