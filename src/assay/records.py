"""Feedback and rollouts as people read them: frozen records, JSON round trip, invariants checked. No torch.

A preference is a probability: 1 when the first response is preferred, 0 when the second is, 0.5 for a tie.
Text that must not pass through a chat template (the field's "standard" format) is a message of role "text".
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

Role = Literal["system", "developer", "user", "assistant", "tool", "text"]
ROLES = ("system", "developer", "user", "assistant", "tool", "text")


def stable_id(*parts: Any) -> str:
    """12 hexadecimal digits that depend on the content alone."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=lambda value: value.to_json())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `extra` holds what chat templates know besides text (tool_calls, name, tool_call_id, ...)."""

    role: Role
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}; got {self.role!r}")
        if not isinstance(self.content, str):
            raise ValueError(f"content must be text; got {type(self.content).__name__}")

    def to_json(self) -> dict[str, Any]:
        """The field's message dictionary."""
        return {"role": self.role, "content": self.content, **self.extra}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """From a message dictionary; a message with tool calls may lack content."""
        if not isinstance(data, Mapping) or "role" not in data:
            raise ValueError("a message must be an object with role and content")
        extra = {key: value for key, value in data.items() if key not in ("role", "content") and value is not None}
        content = data.get("content")
        if content is None and "tool_calls" in extra:
            content = ""
        return cls(data["role"], content, extra)  # pyright: ignore[reportArgumentType] checked in __post_init__


Response = tuple[Message, ...]
"""One assistant message, or turns and tool calls."""


def text_of(response: Response) -> str:
    """The words of a response, turns joined by a blank line."""
    return "\n\n".join(message.content for message in response)


def reply(content: str, *, plain: bool = False) -> Response:
    """A response of one assistant message, or of plain text."""
    return (Message("text" if plain else "assistant", content),)


class Record:
    """JSON round trip for the frozen dataclasses below; `kind` names the class in files."""

    kind: ClassVar[str] = ""

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values, with `kind`."""
        return {"kind": self.kind, **{f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}}  # pyright: ignore[reportArgumentType]


def _plain(value: Any) -> Any:
    if isinstance(value, Message | Record):
        return value.to_json()
    if isinstance(value, Span):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _messages(data: Any) -> tuple[Message, ...]:
    return tuple(Message.from_json(item) for item in data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Record):
    """What a response answers."""

    kind: ClassVar[str] = "prompt"
    messages: tuple[Message, ...]
    id: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", stable_id(self.messages, self.tools, dict(self.template_kwargs)))

    @property
    def is_text(self) -> bool:
        """Whether the prompt is plain text that no chat template touches."""
        return all(message.role == "text" for message in self.messages)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        return cls(
            messages=_messages(data["messages"]),
            id=data.get("id", ""),
            tools=tuple(data.get("tools", ())),
            template_kwargs=data.get("template_kwargs", {}),
            meta=data.get("meta", {}),
        )


def user_prompt(content: str, **fields: Any) -> Prompt:
    """A prompt of one user message."""
    return Prompt(messages=(Message("user", content),), **fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Record):
    """What all judgements of responses share; those under one `objective` can be told apart by `annotator`."""

    prompt: Prompt
    id: str = ""
    annotator: str = ""
    source: str = ""
    objective: str = "overall"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def _identify(self, judged: Any) -> None:
        """An id by content, where none was given."""
        if not self.id:
            object.__setattr__(self, "id", stable_id(self.prompt.id, judged, self.objective, self.annotator))

    @classmethod
    def _shared(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """These fields, from `to_json`."""
        names = ("id", "annotator", "source", "objective", "meta")
        return {"prompt": Prompt.from_json(data["prompt"]), **{key: data[key] for key in names if key in data}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Judged):
    """Two responses to one prompt and the probability that the first is preferred."""

    kind: ClassVar[str] = "comparison"
    responses: tuple[Response, Response]
    preference: float = 1.0

    def __post_init__(self) -> None:
        if len(self.responses) != 2:
            raise ValueError(f"a comparison has two responses; got {len(self.responses)}")
        if not 0 <= self.preference <= 1:
            raise ValueError(f"preference is a probability in [0, 1]; got {self.preference}")
        self._identify(self.responses)

    @property
    def chosen(self) -> Response:
        """The preferred response; the first of a tie."""
        return self.responses[0] if self.preference >= 0.5 else self.responses[1]

    @property
    def rejected(self) -> Response:
        """The other one."""
        return self.responses[1] if self.preference >= 0.5 else self.responses[0]

    @property
    def tie(self) -> bool:
        """Neither is preferred."""
        return self.preference == 0.5

    def swapped(self) -> "Comparison":
        """The same judgement, responses in the other order."""
        return dataclasses.replace(self, responses=self.responses[::-1], preference=1 - self.preference)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        first, second = (_messages(response) for response in data["responses"])
        return cls(responses=(first, second), preference=data.get("preference", 1.0), **cls._shared(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Judged):
    """Several responses to one prompt, best first; `ranks` begin at 0, and equal ones are tied."""

    kind: ClassVar[str] = "ranking"
    responses: tuple[Response, ...]
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ranks = self.ranks or tuple(range(len(self.responses)))
        if len(self.responses) < 2:
            raise ValueError(f"a ranking has at least two responses; got {len(self.responses)}")
        if len(ranks) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses but {len(ranks)} ranks")
        twice = [i for i, response in enumerate(self.responses) if response in self.responses[:i]]
        if twice:
            raise ValueError(f"response {twice[0]} of the ranking is the same as an earlier one")
        order = sorted(range(len(ranks)), key=lambda i: ranks[i])
        levels = sorted(set(ranks))
        object.__setattr__(self, "responses", tuple(self.responses[i] for i in order))
        object.__setattr__(self, "ranks", tuple(levels.index(ranks[i]) for i in order))
        self._identify(self.responses)

    @property
    def tied(self) -> bool:
        """Whether any two responses share a rank."""
        return len(set(self.ranks)) < len(self.ranks)

    def untied(self) -> tuple[tuple[int, int], ...]:
        """Places of every two responses that are not tied, the better one first: at most N (N - 1) / 2."""
        return tuple(
            pair
            for pair in itertools.combinations(range(len(self.ranks)), 2)
            if len({self.ranks[i] for i in pair}) == 2
        )

    def comparison(self, better: int, worse: int) -> Comparison:
        """What the ranking says of the responses at these places."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Judged) if f.name != "id"}
        return Comparison(responses=(self.responses[better], self.responses[worse]), **shared)

    def comparisons(self) -> tuple[Comparison, ...]:
        """Every pair of responses that are not tied."""
        return tuple(self.comparison(better, worse) for better, worse in self.untied())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        responses = tuple(_messages(response) for response in data["responses"])
        return cls(responses=responses, ranks=tuple(data.get("ranks", ())), **cls._shared(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating(Judged):
    """One response and what it was given, on whatever scale."""

    kind: ClassVar[str] = "rating"
    response: Response
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a rating is a finite number; got {self.value}")
        self._identify(self.response)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        return cls(response=_messages(data["response"]), value=float(data["value"]), **cls._shared(data))


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (not included) of a response, what they are, and what they are worth."""

    start: int
    end: int
    name: str
    value: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanLabels(Judged):
    """One response, a single message, and what was said of places in it; none may be a judgement too: nothing wrong."""

    kind: ClassVar[str] = "span_labels"
    response: Response
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if len(self.response) != 1:
            raise ValueError(f"spans are places in one message; the response has {len(self.response)}")
        length = len(self.response[0].content)
        for span in self.spans:
            if not 0 <= span.start < span.end <= length:
                raise ValueError(f"span {span.start} to {span.end} is no part of a response of {length} characters")
        self._identify(self.response)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        spans = tuple(Span(**span) for span in data.get("spans", ()))
        return cls(response=_messages(data["response"]), spans=spans, **cls._shared(data))


Judgement = Comparison | Ranking | Rating | SpanLabels


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration(Record):
    """A response to imitate."""

    kind: ClassVar[str] = "demonstration"
    prompt: Prompt
    response: Response
    id: str = ""
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", stable_id(self.prompt.id, self.response))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        fields = {key: data[key] for key in ("id", "source", "meta") if key in data}
        return cls(prompt=Prompt.from_json(data["prompt"]), response=_messages(data["response"]), **fields)


Feedback = Prompt | Judgement | Demonstration
"""What the readers give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout(Record):
    """A response that a policy sampled. T tokens: `ids`, `mask` (True: the policy wrote it), `sampler_logprobs`."""

    kind: ClassVar[str] = "rollout"
    prompt: Prompt
    response: Response
    stop: Literal["stop", "length"]
    ids: tuple[int, ...] = ()
    mask: tuple[bool, ...] = ()  # empty: all of them
    sampler_logprobs: tuple[float, ...] = ()
    reward: float = math.nan
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    policy_version: int = 0

    def __post_init__(self) -> None:
        if self.stop not in ("stop", "length"):
            raise ValueError(f"stop must be 'stop' or 'length'; got {self.stop!r}")
        for name in ("mask", "sampler_logprobs"):
            if (values := getattr(self, name)) and len(values) != len(self.ids):
                raise ValueError(f"{len(self.ids)} ids but {len(values)} of {name}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        fields = {key: data[key] for key in ("stop", "reward", "reward_parts", "policy_version") if key in data}
        return cls(
            prompt=Prompt.from_json(data["prompt"]),
            response=_messages(data["response"]),
            **{name: tuple(data.get(name, ())) for name in ("ids", "mask", "sampler_logprobs")},
            **fields,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Record):
    """One audit figure: its value, 95% interval, and the limit it had to meet, if any."""

    kind: ClassVar[str] = "finding"
    probe: str
    value: float
    n: int
    interval: tuple[float, float] | None = None
    limit: str = ""  # "" when the figure is reported only, else e.g. ">= 0.55"
    passed: bool = True
    message: str = ""  # one sentence: what was found, and when it failed, why that matters
    examples: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From `to_json`."""
        fields = {key: value for key, value in data.items() if key != "kind"}
        if fields.get("interval") is not None:
            fields["interval"] = tuple(fields["interval"])
        fields["examples"] = tuple(fields.get("examples", ()))
        return cls(**fields)
