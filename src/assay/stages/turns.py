"""Conversations of several turns with an environment: tools, users, games. What it says is never trained on."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from assay.engine.sample import sample
from assay.engine.samples import Samples
from assay.records import Message, Prompt, Rollout
from assay.rewards.apart import FaultSettings
from assay.rewards.rules import finite, load_object, named_fields, to_field
from assay.settings import InputError
from assay.stages.sampling import Drawn, PolicySampler


class Environment(Protocol):
    """One conversation's other side. A class of one's own is made once for each: `Class(prompt, **columns)`.

    `prompt` is the prompt's messages, `columns` the prompt's other fields; `id`, `tools` and `chat_template_kwargs` are
    given where the class names them.
    """

    def step(self, messages: list[dict[str, Any]]) -> tuple[Sequence[dict[str, Any]], float, bool]:
        """After a turn of the assistant's, the last of `messages`: what is said then, the turn's reward, if it ends.

        Messages have `role` ("tool", "user", ...) and `content`.
        """
        ...


@dataclass(slots=True)
class _Episode:
    """A conversation on its way: tokens after the prompt, which of them the policy wrote, what was paid where."""

    prompt: Prompt
    trunk: tuple[int, ...]
    environment: Environment | None = None
    ids: list[int] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    paid: list[float] = field(default_factory=list)
    allowed: list[torch.Tensor] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    stopped: bool = True
    done: bool = False
    failed: str = ""  # why the environment could not go on

    def write(self, ids: Sequence[int], logprobs: Sequence[float], allowed: torch.Tensor | None, text: str) -> None:
        """A turn of the policy's."""
        self.ids += ids
        self.written += [True] * len(ids)
        self.logprobs += logprobs
        self.paid += [0.0] * len(ids)
        self.allowed += [] if allowed is None else list(allowed[: len(ids)])
        self.turns.append(Message("assistant", text))

    def hear(self, ids: Sequence[int], turns: Sequence[Message]) -> None:
        """What somebody else said."""
        self.ids += ids
        self.written += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.paid += [0.0] * len(ids)
        self.allowed += [torch.full_like(self.allowed[0], 255)] * len(ids) if self.allowed else []
        self.turns += turns


def environment_at(place: str) -> Callable[..., Environment]:
    """The class at file.py:Class or package.module:Class."""
    make = load_object(place, "environment")
    if not callable(getattr(make, "step", None)):
        raise InputError(f"environment {place}: the class has no method step(messages)")
    return make


class Episodes:
    """Plays conversations: the policy writes, the environment answers, up to `max_turns` turns of the policy's."""

    def __init__(
        self,
        sampler: PolicySampler,
        make: Callable[..., Environment],
        name: str,
        max_turns: int,
        faults: FaultSettings | None = None,
    ) -> None:
        """Under `faults` a step that fails is asked again; what fails for good ends the run, or its conversation."""
        self.sampler, self.make, self.name, self.max_turns = sampler, make, name, max_turns
        self.faults = faults or FaultSettings()

    def draw(self, prompts: Sequence[Prompt], num: int, generator: torch.Generator) -> Drawn:
        """`num` conversations from each prompt; the first turns of a prompt share its computation."""
        first = self.sampler.draw(prompts, num, generator)
        episodes = [
            self._begin(prompt, trunk) for prompt, trunk in zip(prompts, first.prompts, strict=True) for _ in range(num)
        ]
        self._written(episodes, first.samples)
        seeds = torch.randint(2**63 - 1, (self.max_turns,), generator=generator).tolist()  # however many turns it takes
        for turn, seed in enumerate(seeds, 1):
            for episode in episodes:
                if not episode.done:
                    self._answer(episode, last=turn == self.max_turns)
            if all(episode.done for episode in episodes):
                break
            self._go_on(episodes, torch.Generator().manual_seed(seed))
        failed = tuple(episode.failed for episode in episodes)
        return Drawn(tuple(map(_rollout, episodes)), first.prompts, _samples(episodes), num, num, failed)

    def _go_on(self, episodes: Sequence[_Episode], generator: torch.Generator) -> None:
        """The policy's next turn; its draws are those of the conversation's place, whoever else still talks."""
        live = [episode for episode in episodes if not episode.done]
        places = torch.tensor([not episode.done for episode in episodes])
        contexts = [(*episode.trunk, *episode.ids) for episode in live]
        settings, stop = self.sampler.settings, self.sampler.stop
        with self.sampler.learner.computing() as model:
            drawn = sample(model, contexts, 1, settings, stop=stop, generator=generator, live=places)
        self._written(live, drawn)

    def _begin(self, prompt: Prompt, trunk: tuple[int, ...]) -> _Episode:
        episode = _Episode(prompt, trunk)
        try:
            asked = list(inspect.signature(self.make).parameters)[1:]  # the first is the prompt
            named = {name: value for name, value in named_fields(prompt).items() if name in asked}
            # copies, for each conversation may change its own
            messages, columns = copy.deepcopy((to_field(prompt.messages), {**named, **prompt.meta}))
            episode.environment = self.make(messages, **columns)
        except (Exception, SystemExit) as error:
            self._fails(episode, f"environment {self.name} cannot be made: {type(error).__name__}: {error}")
        return episode

    def _fails(self, episode: _Episode, why: str) -> None:
        """The end of the run, or of this conversation."""
        if self.faults.then == "stop":
            raise InputError(f"{why} (or go on without such prompts: --faults.then mask)")
        episode.done, episode.failed = True, why

    def _written(self, episodes: Sequence[_Episode], drawn: Samples) -> None:
        allowed = drawn.columns.get("allowed")
        for row, (episode, ids) in enumerate(zip(episodes, drawn.rows(), strict=True)):
            logprobs = drawn.logprobs[row, : len(ids)].tolist()
            bits = None if allowed is None else allowed[row]
            episode.write(ids, logprobs, bits, self.sampler.encoder.spoken(ids))
            episode.stopped = bool(drawn.stopped[row])

    def _answer(self, episode: _Episode, *, last: bool) -> None:
        """The environment's turn; the conversation ends when it says so, at the last turn, and where room runs out."""
        try:
            turns, reward, done = self.faults.tried(lambda: self._step(episode))
        except InputError as error:
            self._fails(episode, str(error))
            return
        episode.paid[-1] += reward
        episode.done = done or last or not episode.stopped
        if episode.done:
            return
        ids = self.sampler.encoder.between(episode.prompt, tuple(episode.turns), turns)
        room = self.sampler.context - self.sampler.settings.max_tokens
        if len(episode.trunk) + len(episode.ids) + len(ids) > room:
            episode.done, episode.stopped = True, False
            return
        episode.hear(ids, turns)

    def _step(self, episode: _Episode) -> tuple[tuple[Message, ...], float, bool]:
        """What the environment said, checked."""
        assert episode.environment is not None
        messages = [copy.deepcopy(message.to_json()) for message in (*episode.prompt.messages, *episode.turns)]
        try:
            turns, reward, done = episode.environment.step(messages)
            told = tuple(self._blanked(Message.from_json(turn)) for turn in turns)
        except (Exception, SystemExit) as error:
            raise InputError(f"environment {self.name}, step: {type(error).__name__}: {error}") from error
        worth = finite(reward, f"environment {self.name}, step: its reward must be a finite number")
        if not done and not told:
            raise InputError(f"environment {self.name}, step: it says nothing and does not end the conversation")
        return told, worth, bool(done)

    def _blanked(self, turn: Message) -> Message:
        """With a space for every special token that the text spells: a page that a tool found may hold any."""
        text = turn.content
        for word in self.sampler.encoder.special:
            text = text.replace(word, " ")
        return replace(turn, content=text)


def _rollout(episode: _Episode) -> Rollout:
    return Rollout(
        prompt=episode.prompt,
        response=tuple(episode.turns),
        stop="stop" if episode.stopped else "length",
        ids=tuple(episode.ids),
        mask=tuple(episode.written),
        sampler_logprobs=tuple(episode.logprobs),
    )


def _samples(episodes: Sequence[_Episode]) -> Samples:
    lengths = torch.tensor([len(episode.ids) for episode in episodes])
    width = int(lengths.max())

    def wide(rows: Sequence[Sequence[Any]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=dtype)

    columns = {
        "mask": wide([episode.written for episode in episodes], torch.bool),
        "token_rewards": wide([episode.paid for episode in episodes], torch.float32),
    }
    if episodes[0].allowed:
        rows = [torch.stack(episode.allowed) for episode in episodes]
        columns["allowed"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ids = wide([episode.ids for episode in episodes], torch.long)
    logprobs = wide([episode.logprobs for episode in episodes], torch.float32)
    stopped = torch.tensor([episode.stopped for episode in episodes])
    return Samples(ids, lengths, logprobs, stopped, columns)
