"""What several stages need: required settings, oracles by name, encoding that counts what is too long."""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from assay.config import DataSettings, PolicyConfig, RewardUse
from assay.config_files import plain
from assay.engine.catalog import hash_of_folder, resolve_model
from assay.engine.load import DType
from assay.feedback.oracles import Oracle, TextOracle, length_lover
from assay.records import Comparison, Prompt, Record, Response
from assay.report.run import RunDirectory, read_json
from assay.rewards.adapters import adapter_folders
from assay.rewards.apart import FaultSettings, alone
from assay.rewards.implicit import PREFIX, ImplicitSource
from assay.rewards.instructed import Instructed
from assay.rewards.model import Reward
from assay.rewards.opening import names_of, open_reward
from assay.rewards.rules import columns_of, load, to_field
from assay.settings import InputError
from assay.stages.progress import say
from assay.tokens.chat import Encoded, SpecialText

Item = TypeVar("Item")
REWARD = "reward:"  # before the name of a reward model that serves as an oracle


def require(value: str, flag: str, what: str) -> str:
    """`value`, or an error that says what is missing."""
    if not value:
        raise InputError(f"--{flag} is missing: give {what}")
    return value


def open_run(path: str) -> RunDirectory:
    """The run directory, which need not exist; what earlier stages noted in it must be whole."""
    place = RunDirectory(require(path, "run", "a directory for the run's results"))
    if place.path.exists() and not place.path.is_dir():
        raise InputError(f"--run {path} is a file: name a directory for the run's results")
    if place.config.exists():
        place.read_config()
    if place.provenance.exists() and not isinstance(read_json(place.provenance), dict):
        raise InputError(f"{place.provenance}: not a JSON object; remove it, and the stages note it anew")
    return place


def read(reader: Callable[..., Any], data: DataSettings, flag: str = "data") -> tuple[Any, ...]:
    """Records as `data` says, the account of reading them printed."""
    source = require(data.path, f"{flag}.path", "a file, a dataset folder or a hub id")
    if data.objectives and "objectives" not in inspect.signature(reader).parameters:
        raise InputError(f"--{flag}.objectives: these records hold one judgement each, of no named objective")
    objectives = {"objectives": data.objectives} if data.objectives else {}
    found = reader(source, split=data.split, on_bad=data.on_bad, limit=data.limit, **objectives)
    say(str(found.report))
    return found.records


class ModelOracle:
    """A reward model that serves as an oracle."""

    def __init__(self, model: Reward, name: str) -> None:
        self.model, self.name = model, name

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        """As `Oracle`."""
        scored = self.model.score(list(zip(prompts, responses, strict=True)))
        return all_finite(scored, [prompt.id for prompt in prompts], self.name)


def load_oracle(
    name: str, faults: FaultSettings | None = None, *, dtype: DType = "auto", token_budget: int = 8192
) -> Oracle:
    """ "text", "length", "reward:MODEL", or a function of (prompts, responses, **columns) in a file or module.

    `faults` say how long a function may take, and how often it is asked again; a model computes in `dtype`,
    `token_budget` tokens at once.
    """
    if name == "text":
        return TextOracle()
    if name == "length":
        return length_lover
    if name.startswith(REWARD):
        return ModelOracle(open_reward(name.removeprefix(REWARD), dtype=dtype, token_budget=token_budget), name)
    faults = faults or FaultSettings()
    rule = alone(name, faults.timeout) if faults.timeout else load(name)

    def oracle(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        asked, answers = [to_field(prompt.messages) for prompt in prompts], [to_field(answer) for answer in responses]
        columns = columns_of(prompts)
        return faults.tried(lambda: rule(asked, answers, **columns))

    return oracle


def hash_of_oracle(name: str) -> str:
    """What tells one oracle from another: a model's weights, a function's file, a name."""
    if name.startswith(REWARD):
        return "+".join(hash_of_model(part) for part in names_of(name.removeprefix(REWARD)))
    return " ".join(hash_of_code(name))


def all_finite(values: list[float], ids: Sequence[str], name: str) -> list[float]:
    """`values`; InputError naming the model and the first id where one is no finite number."""
    if bad := [row for row, value in enumerate(values) if not math.isfinite(value)]:
        raise InputError(
            f"{name} gives {len(bad)} of {len(values)} answers a reward that is no finite number (the first, of "
            f"{ids[bad[0]]}: {values[bad[0]]})"
        )
    return values


def load_rewards(name: str, config: RewardUse) -> Reward:
    """The reward model or models of that name, read and told as the settings say."""
    sampler = config.principles.sampler()
    if sampler is not None and sampler.num and not isinstance(config, PolicyConfig):
        raise InputError("--principles.num draws for a policy's answers; here name what is told with --principles.told")
    found = open_reward(
        name,
        rule=config.reward_rule,
        penalty=config.reward_penalty,
        weights=config.reward_weights,
        dtype=config.dtype,
        token_budget=config.token_budget,
    )
    return found if sampler is None else Instructed(found, sampler, seed=getattr(config, "seed", 0))


def hash_of_rewards(name: str, config: RewardUse) -> str:
    """The weights of all models of that name, and how they are read where the settings say it.

    What is drawn for each prompt is not in it: an audit cannot know which principles those will be.
    """
    told = ["+".join(hash_of_model(part) for part in names_of(name))]
    if config.reward_rule:
        told.append(f"{config.reward_rule} {config.reward_penalty}")
    if config.reward_weights:
        told.append(f"weights {config.reward_weights}")
    if (sampler := config.principles.sampler()) is not None and sampler.fixed:
        told.append(f"told {plain(sampler)['fixed']}")
    return " ".join(told)


def hash_of_model(name: str) -> str:
    """The hash of a model's folder; of both and the scale where a policy and its reference are the reward."""
    if folders := adapter_folders(name):
        return "+".join(hash_of_folder(str(folder)) for folder in folders)
    if not name.startswith(PREFIX):
        return hash_of_folder(resolve_model(name).path)
    source = ImplicitSource.parse(name)
    policy, reference = (hash_of_folder(resolve_model(part).path) for part in (source.policy, source.reference))
    return f"{source.beta:g}*{policy}:{reference}"


def keep_fitting(
    records: Iterable[Item],
    encode: Callable[[Item], Sequence[Encoded]],
    limit: int,
    data: DataSettings,
    flag: str = "data",
) -> list[tuple[Item, Sequence[Encoded]]]:
    """Records whose conversations all fit `limit` tokens. Others are an error, or dropped and counted if so asked.

    So are records with a text that spells out a special token.
    """
    kept: list[tuple[Item, Sequence[Encoded]]] = []
    long, longest, special, unshared = 0, 0, 0, 0
    for record in records:
        try:
            encoded = encode(record)
        except SpecialText as error:
            if data.on_bad == "error":
                raise InputError(f"{data.path}: {error}, or drop and count it with --{flag}.on_bad skip") from None
            special += 1
            continue
        size = max(conversation.num_tokens for conversation in encoded)
        longest = max(longest, size)
        if size > limit:
            long += 1
            continue
        unshared += sum(not conversation.shared for conversation in encoded)
        kept.append((record, encoded))
    if long and data.too_long == "error":
        raise InputError(
            f"{data.path}: {long} of {len(kept) + long} records are longer than {limit} tokens (the longest has "
            f"{longest}); drop and count them with --{flag}.too_long skip"
        )
    if long:
        say(f"{data.path}: dropped {long} of {len(kept) + long} records longer than {limit} tokens")
    if special:
        say(f"{data.path}: dropped {special} records whose text spells out a special token")
    if unshared:
        say(f"{data.path}: {unshared} answers do not share their prompt: its ids change when the answer follows")
    if not kept:
        raise InputError(f"{data.path}: no record fits {limit} tokens")
    return kept


def hash_of(records: Iterable[Record]) -> str:
    """16 hexadecimal digits of the records' content, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record.to_json(), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def data_columns(records: Sequence[Any], declared: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The data columns that an algorithm declares, from the records' other columns: a number a record, or a list of
    one for each of its answers, in the order of the file."""
    found: dict[str, torch.Tensor] = {}
    for name in declared:
        values: list[float] = []
        for record in records:
            value = record.meta.get(name)
            numbers = value if isinstance(value, list | tuple) else [value]
            if isinstance(record, Comparison) and record.chosen is record.responses[1]:
                numbers = numbers[::-1]  # a batch has the chosen answer first
            if not all(isinstance(number, int | float) for number in numbers):
                raise InputError(f"record {record.id}: the algorithm reads a column {name!r} of numbers; got {value!r}")
            values += [float(number) for number in numbers]
        found[name] = torch.tensor(values)
    return found


def hash_of_code(told: str) -> list[str]:
    """What a place like file.py:name, a weight before it or not, means: 16 hexadecimal digits of the file, the name.

    Of a package's module the name is all that is known.
    """
    weight, _, place = told.rpartition("*")
    path, _, name = place.rpartition(":")
    if not Path(path).is_file():
        return [told]
    return [weight, name, hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]]


def distinct_pairs(texts: Sequence[str]) -> float:
    """Different word pairs over all word pairs of the answers, 1 where there are none (Li et al. 2016,
    arXiv:1510.03055, distinct-2).
    """
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0
