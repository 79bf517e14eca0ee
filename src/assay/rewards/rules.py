"""Programmatic rewards in the field's shape, `f(prompts, responses, **columns) -> list[float]`. No torch.

Prompts and responses arrive as plain strings where no chat template is used, and as message lists
(`[{"role": ..., "content": ...}]`) where one is. `columns` are the data's other columns, `id` among them, one value per
response; of answers that a policy sampled also `num_tokens` and `stopped`, whether each ended by itself. A function
that names its second argument `completions`, as TRL's do, is called that way.
"""

import asyncio
import copy
import importlib
import importlib.util
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from assay.feedback.oracles import Oracle
from assay.feedback.sources import missing
from assay.records import Message, Prompt, Response, Rollout, reply, stable_id
from assay.settings import InputError, nearest

Text = str | Sequence[Mapping[str, Any]]
"""A plain string, or messages as dictionaries."""

RewardFunction = Callable[..., Any]

OF_ANSWERS = ("num_tokens", "stopped")
LARGEST = 1e18  # of a reward: its square is still a finite fp32 number

ENDINGS = (Exception, SystemExit)
"""What a function's failure may be; one that calls exit() is not to end the training."""

TAKEN = ("self", "prompts", "responses", *OF_ANSWERS)
"""Names that no column can have beside what every reward is called with."""

RESERVED = ("model", "model_uncertainty", "judge")
"""Names of the parts of a policy's reward that are no rules."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A programmatic reward whose answers are checked; the function stays available as `function`."""

    function: RewardFunction
    name: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"a reward must be a function of (prompts, responses, **columns); got {self.function!r}")
        if not self.name:
            object.__setattr__(self, "name", getattr(self.function, "__name__", type(self.function).__name__))

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Text], **columns: Sequence[Any]) -> list[float]:
        """One finite number per response, or `InputError` naming the function, what was expected and what came."""
        result = _call(self.function, self.name, prompts, responses, columns)
        return check_rewards(result, len(responses), self.name)


@dataclass(frozen=True, slots=True)
class Combined:
    """A weighted sum of rewards that keeps its parts."""

    parts: tuple[tuple[float, Rule], ...]
    name: str = field(default="combined")

    def __call__(self, prompts: Sequence[Text], responses: Sequence[Text], **columns: Sequence[Any]) -> list[float]:
        """The sums, one per response."""
        return self.total(self.score_parts(prompts, responses, **columns), len(responses))

    def score_parts(
        self, prompts: Sequence[Text], responses: Sequence[Text], **columns: Sequence[Any]
    ) -> dict[str, list[float]]:
        """Each part's rewards before weighting, by name, one per response."""
        return {rule.name: rule(prompts, responses, **columns) for _, rule in self.parts}

    def total(self, scored: Mapping[str, Sequence[float]], num_responses: int) -> list[float]:
        """The weighted sums of scored parts."""
        return [
            math.fsum(weight * scored[rule.name][row] for weight, rule in self.parts) for row in range(num_responses)
        ]


class Several(Protocol):
    """Rewards with parts: `Combined`, or what computes its parts elsewhere."""

    @property
    def parts(self) -> tuple[tuple[float, Rule], ...]:
        """Weights and rewards."""
        ...

    def score_parts(
        self, prompts: Sequence[Text], responses: Sequence[Text], **columns: Sequence[Any]
    ) -> dict[str, list[float]]:
        """As `Combined`."""
        ...

    def total(self, scored: Mapping[str, Sequence[float]], num_responses: int) -> list[float]:
        """As `Combined`."""
        ...


Reward = Rule | Several


def combine(parts: Iterable[tuple[float, RewardFunction | str]], *, name: str = "combined") -> Combined:
    """A weighted sum of rewards: functions, `Rule`s, or the places that `load` takes. Equal names get a number."""
    rules: list[tuple[float, Rule]] = []
    for weight, reward in parts:
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not math.isfinite(weight):
            raise InputError(f"the weight of a reward must be a finite number; got {weight!r}")
        rule = load(reward) if isinstance(reward, str) else as_rule(reward)
        if rule.name in RESERVED:
            raise InputError(f"a reward called {rule.name!r} would be taken for another part of the sum: rename it")
        same = sum(rule.name == other.name.partition("#")[0] for _, other in rules)
        rules.append((float(weight), replace(rule, name=f"{rule.name}#{same + 1}") if same else rule))
    if not rules:
        raise InputError("combine needs at least one (weight, reward)")
    return Combined(tuple(rules), name)


def as_rule(reward: RewardFunction) -> Rule:
    """A checked reward from any function of the field's shape."""
    return reward if isinstance(reward, Rule) else Rule(reward, getattr(reward, "name", ""))


def from_oracle(oracle: Oracle, name: str = "oracle") -> Rule:
    """An oracle, which reads records, as a reward in the field's shape."""

    def rewards(prompts: Sequence[Text], responses: Sequence[Text], **_columns: Any) -> list[float]:
        asked = [Prompt(messages=_from_field(prompt, "user")) for prompt in prompts]
        return oracle(asked, [_from_field(response, "assistant") for response in responses])

    return Rule(rewards, name)


def fill_rewards(reward: Reward, rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """The rollouts with `reward` filled, and with `reward_parts` where the reward has parts.

    The keys of the prompts' `meta` become columns, but for those that are called as what is judged, and so do `id`,
    `tools` and `chat_template_kwargs`; a rollout that lacks one has None there.
    """
    prompts = [to_field(rollout.prompt.messages) for rollout in rollouts]
    responses = [to_field(rollout.response) for rollout in rollouts]
    columns = columns_of([rollout.prompt for rollout in rollouts])
    if all(rollout.ids for rollout in rollouts):
        columns["num_tokens"] = [sum(rollout.mask) if rollout.mask else len(rollout.ids) for rollout in rollouts]
        columns["stopped"] = [rollout.stop == "stop" for rollout in rollouts]
    if isinstance(reward, Rule):
        totals, scored = reward(prompts, responses, **columns), {}
    else:
        scored = reward.score_parts(prompts, responses, **columns)
        totals = reward.total(scored, len(rollouts))
    return tuple(
        replace(
            rollout,
            reward=total,
            reward_parts={**rollout.reward_parts, **{name: values[row] for name, values in scored.items()}},
        )
        for row, (rollout, total) in enumerate(zip(rollouts, totals, strict=True))
    )


def columns_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The other fields of the data as columns, but for those that are called as what is judged."""
    rows = [{**named_fields(prompt), **prompt.meta} for prompt in prompts]
    names = dict.fromkeys(name for row in rows for name in row if name not in TAKEN)
    return {name: [row.get(name) for row in rows] for name in names}


def named_fields(prompt: Prompt) -> dict[str, Any]:
    """What the data's columns `id`, `tools` and `chat_template_kwargs` hold for a prompt, where they hold something."""
    fields = {"id": prompt.id, "tools": list(prompt.tools), "chat_template_kwargs": dict(prompt.template_kwargs)}
    return {name: value for name, value in fields.items() if value}


def to_field(turns: Response) -> Text:
    """A string for plain text, else message dictionaries."""
    if turns and all(turn.role == "text" for turn in turns):
        return "".join(turn.content for turn in turns)
    return [turn.to_json() for turn in turns]


def _from_field(text: Text, role: str) -> Response:
    if isinstance(text, str):
        return reply(text, plain=True)
    return tuple(Message.from_json({"role": role, **turn}) for turn in text)


def load(place: str) -> Rule:
    """The reward at "path/to/file.py:function" or "package.module:function"."""
    function = load_object(place, "reward")
    if not callable(function):
        raise InputError(f"{place} is no function but {type(function).__name__}")
    if isinstance(function, type):
        raise InputError(f"{place} is a class: name a function of (prompts, responses, **columns), or an instance")
    return Rule(function, place.rpartition(":")[2])


def load_object(place: str, kind: str) -> Any:
    """What the user's file or module defines under a name; `kind` says in errors what was looked for."""
    where, colon, name = place.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise InputError(f"{kind} {place!r}: write path/to/file.py:name or package.module:name")
    module = _file_module(Path(where)) if where.endswith(".py") else _named_module(where, place)
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not hasattr(module, name):
        raise InputError(f"{where} has no {name!r}.{nearest(name, known)}")
    return getattr(module, name)


def _file_module(path: Path) -> Any:
    if not path.is_file():
        raise missing(path)
    name = f"{path.stem}_{stable_id(str(path.resolve()))}"  # two folders may have files of one name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except ENDINGS as error:
        del sys.modules[name]
        raise InputError(f"{path} does not run: {_said(error)}") from error
    return module


def _named_module(name: str, place: str) -> Any:
    try:
        return importlib.import_module(name)
    except ENDINGS as error:
        raise InputError(f"{place!r}: importing {name} failed: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'without a message'}"


def _call(
    function: RewardFunction, name: str, prompts: Sequence[Text], responses: Sequence[Text], columns: Mapping[str, Any]
) -> Any:
    arguments = _arguments(function, name, prompts, responses, columns)
    here = os.open(".", os.O_RDONLY)
    try:
        result = function(**arguments)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result
    except InputError:
        raise
    except (*ENDINGS, asyncio.CancelledError) as error:
        raise InputError(f"reward function {name!r} failed on {len(responses)} responses: {_said(error)}") from error
    finally:
        os.fchdir(here)  # relative places, as that of the run, mean what they did
        os.close(here)


async def _awaited(result: Any) -> Any:
    return await result


def _arguments(
    function: RewardFunction, name: str, prompts: Sequence[Text], responses: Sequence[Text], columns: Mapping[str, Any]
) -> dict[str, Any]:
    """What the function's signature asks for; every column only where it takes any.

    Each value is a copy: what the function does to it is seen neither in the data, nor in another answer to the prompt,
    nor by another function.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    answers = "completions" if "completions" in parameters else "responses"
    offered = {**columns, "prompts": list(prompts), answers: list(responses)}
    for parameter in parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InputError(f"reward function {name!r}: {parameter.name!r} must be callable by name (no '/')")
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and parameter.name not in offered:
            has = ", ".join(columns) or "none"
            raise InputError(
                f"reward function {name!r} needs {parameter.name!r}, which is neither prompts, responses nor one of "
                f"the data's columns ({has}).{nearest(parameter.name, offered)}"
            )
    wanted = offered if takes_any else {key: offered[key] for key in offered if key in parameters}
    return {key: [copy.deepcopy(value) for value in values] for key, values in wanted.items()}


def check_columns(rule: Rule, prompts: Sequence[Prompt]) -> None:
    """InputError where the function needs a column that answers to these prompts will not have."""
    _arguments(rule.function, rule.name, (), (), {**columns_of(prompts), **dict.fromkeys(OF_ANSWERS, ())})


def check_rewards(result: Any, num_responses: int, name: str) -> list[float]:
    """The rewards as floats; `InputError` unless they are one finite number per response."""
    expected = f"reward function {name!r} must return {num_responses} finite numbers, one per response"
    if isinstance(result, np.ndarray) and result.ndim == 1:
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise InputError(f"{expected}; got {_what(result)}")
    if len(result) != num_responses:
        raise InputError(f"{expected}; got {len(result)}")
    return [finite(value, expected, f" for response {row}") for row, value in enumerate(result)]


def finite(value: Any, expected: str, where: str = "") -> float:
    """The value as a float; `InputError` that says what was expected and what came, unless it is a finite number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise InputError(f"{expected}; got {_what(value)}{where}")
    found = _float(value)
    if not math.isfinite(found):
        raise InputError(f"{expected}; got {found}{where}")
    if abs(found) > LARGEST:
        raise InputError(f"{expected}; got {found:g}{where}, whose square is beyond what rewards are computed in")
    return found


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer that no float holds
        return math.inf


def _what(value: Any) -> str:
    if value is None:
        return "None"
    kind = type(value)
    if kind.__module__.partition(".")[0] == "torch":
        return f"a tensor {tuple(value.shape)} (return .tolist())"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return f"{kind.__name__} {value!r:.40}"
