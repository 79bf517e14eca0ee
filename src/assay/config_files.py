"""Configs from YAML and back: what is unknown, of a wrong type or out of range is named with where it stands."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from assay.settings import InputError, nearest


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as nested dictionaries."""
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = nearest(path.name, [other.name for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        raise InputError(f"{path}: no such config file.{near}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a config file holds `name: value` lines; got {type(data).__name__}")
    return data


def validate(kind: type, data: Mapping[str, Any], where: str) -> Any:
    """The config that `data` describes. Unknown keys and wrong types are named, with the nearest known key."""
    _check_keys(kind, data, where, "")
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {name}: {first['msg']}; got {first['input']!r}") from None
    except TypeError as error:
        raise InputError(f"{where}: {error}; a date or another YAML type where text or a number belongs") from None


def _check_keys(kind: Any, data: Any, where: str, prefix: str) -> None:
    if not isinstance(data, Mapping):
        return
    of_any = get_args(kind)[1] if get_origin(kind) is dict else None
    if of_any is None and not dataclasses.is_dataclass(kind):
        return
    known = {} if of_any else {f.name: f.type for f in fields(kind)}
    for key, value in data.items():
        if of_any is None and key not in known:
            raise InputError(f"{where}: unknown key {prefix}{key}.{nearest(str(key), known)}")
        _check_keys(of_any or known[key], value, where, f"{prefix}{key}.")


AT_LEAST: Mapping[str, float] = {
    "batch_size": 1,
    "num_answers": 1,
    "num_prompts": 1,
    "token_budget": 1,
    "watch_every": 1,
    "max_tokens": 1,
    "limit": 1,
    "keep": 1,
    "every": 0,
    "steps": 0,
    "epochs": 0,
    "reward_penalty": 0,
    "held_out": 0,
    "prior": 0,
    "adapters": 1,
    "validation": 0,
    "language_coef": 0,
    "heads": 1,
    "rank": 0,
    "lr": 0,
    "warmup": 0,
    "top_k": 0,
    "alone": 0,
    "max_turns": 1,
    "timeout": 0,
    "retries": 0,
    "num_epochs": 1,
    "num_minibatches": 1,
    "sync": 1,
    "patience": 1,
    "alpha_batches": 1,
    "target_kl": 0,
    "kl_coef": 0,
    "vf_coef": 0,
    "ptx_coef": 0,
    "entropy_coef": 0,
    "gamma": 0,
    "lam": 0,
    "clip": 0,
    "clip_low": 0,
    "clip_high": 0,
    "value_clip": 0,
    "reward_clip": 0,
    "advantage_clip": 0,
    "sampler_clip": 0,
    "v_max": 0,
    "cut_penalty": 0,
    "smoothing": 0,
}
MORE_THAN_0 = ("sampling.temperature", "max_norm", "top_p", "share", "kl_horizon")
MORE_THAN_0 += ("algorithm.beta", "algorithm.temperature", "lora.alpha", "labelled")
AT_MOST_1 = ("top_p", "share", "mixture", "labelled", "warmup", "algorithm.gamma", "algorithm.lam")


def check_numbers(config: Any) -> None:
    """Raises InputError for a number that can mean nothing, such as a batch of 0."""
    for name, value in leaves(config):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} must be a finite number; got {value}")
        if name.endswith("seed") and not 0 <= value < 2**62:
            raise InputError(f"{name} must be from 0 to 2^62; got {value}")
        low = AT_LEAST.get(name.rpartition(".")[2])
        if low is not None and not value >= low:
            raise InputError(f"{name} must be at least {low}; got {value}")
        if name.endswith(MORE_THAN_0) and not value > 0:
            raise InputError(f"{name} must be more than 0; got {value}")
        if name.endswith(AT_MOST_1) and not value <= 1:
            raise InputError(f"{name} must be at most 1; got {value}")


def leaves(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Each setting of a config, its name dotted, and its value."""
    inner = config if isinstance(config, Mapping) else {f.name: getattr(config, f.name) for f in fields(config)}
    found: list[tuple[str, Any]] = []
    for name, value in inner.items():
        nested = dataclasses.is_dataclass(value) or (isinstance(value, Mapping) and value)
        found += leaves(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", value)]
    return found


def plain(config: Any) -> dict[str, Any]:
    """A config as nested JSON values, in the order of its fields."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")
