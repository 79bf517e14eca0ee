"""Programmatic rewards in a process of their own, killed with all that it started when it is late. No torch."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from assay.rewards.rules import Combined, RewardFunction, Text, load
from assay.settings import InputError, Settings

T = TypeVar("T")
START = 60.0  # seconds that the functions' imports may take


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSettings(Settings):
    """What is done about rewards that cannot be had.

    Those of programs that raise, hang or return something else than numbers, and of a model that cannot read an answer
    or has no finite opinion of it.
    """

    timeout: float = 0.0  # of programs, seconds a batch: above 0 they run in a process apart, killed when they hang
    retries: int = 0  # of a program that failed
    then: Literal["stop", "mask"] = "stop"  # end the run, or do not learn from the prompts whose rewards failed

    def tried(self, call: Callable[[], T]) -> T:
        """What the call gives, asked again up to `retries` times where it raises InputError."""
        for _ in range(self.retries):
            with contextlib.suppress(InputError):
                return call()
        return call()


def alone(place: str, timeout: float) -> RewardFunction:
    """The reward at "file.py:function" in a process of its own."""
    apart = Apart(Combined(((1.0, load(place)),)), [place], timeout)

    def reward(prompts: Sequence[Text], responses: Sequence[Text], **columns: Sequence[Any]) -> list[float]:
        (found,) = apart.score_parts(prompts, responses, **columns).values()
        return found

    return reward


class Apart:
    """In the place of `Combined`: the same parts, computed elsewhere. Not for functions that keep state between calls.

    `places` are those that `rules` was made of.
    """

    def __init__(self, rules: Combined, places: Sequence[str], timeout: float) -> None:
        self.rules, self.places, self.timeout = rules, tuple(places), timeout
        self.process: subprocess.Popen[str] | None = None

    @property
    def parts(self) -> tuple[tuple[float, Any], ...]:
        """As `Combined`."""
        return self.rules.parts

    def total(self, scored: Mapping[str, Sequence[float]], num_responses: int) -> list[float]:
        """As `Combined`."""
        return self.rules.total(scored, num_responses)

    def score_parts(
        self, prompts: Sequence[Text], responses: Sequence[Text], **columns: Sequence[Any]
    ) -> dict[str, list[float]]:
        """As `Combined`; InputError where a function failed, died or took longer than the timeout."""
        asked = {"prompts": list(prompts), "responses": list(responses), "columns": columns}
        told = self._ask(json.dumps(asked, default=str))
        if "error" in told:
            raise InputError(told["error"])
        names = [rule.name for _, rule in self.parts]
        return dict(zip(names, told["parts"].values(), strict=True))

    def _ask(self, line: str) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.close()
            raise InputError(f"the process of the rewards ({', '.join(self.places)}) died; see its output") from None
        try:
            answer = self._read(process, self.timeout)
        except KeyboardInterrupt:  # it has a session of its own, which the keyboard does not reach
            self.close()
            raise
        if answer is None:
            self.close()
            names = ", ".join(rule.name for _, rule in self.parts)
            raise InputError(f"reward function {names}: no answer within {self.timeout:g} s; its process was killed")
        if not answer:
            code = self.close()
            raise InputError(f"the process of the rewards ({', '.join(self.places)}) ended with exit code {code}")
        return json.loads(answer)

    def _read(self, process: "subprocess.Popen[str]", seconds: float) -> str | None:
        """The next line, '' at the end of the pipe, None when the time is up."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        return process.stdout.readline()

    def _running(self) -> "subprocess.Popen[str]":
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "assay.rewards.worker", *self.places],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # what a reward starts ends with it
            )
            if self._read(self.process, max(self.timeout, START)) is None:  # "ready": imports have a time of their own
                self.close()
                raise InputError(f"the imports of {', '.join(self.places)} took longer than {START:g} s; killed")
        return self.process

    def close(self) -> int:
        """End the process and what it started; its exit code, 0 where there was none."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
