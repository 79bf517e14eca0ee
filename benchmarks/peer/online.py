"""What the benchmarks of online methods share, on both sides: options, prompts, rollouts, the clock, the record.

Importing it needs the standard library only. Rollouts are kept as token ids, so both sides train on the same tokens.
"""

import argparse
import contextlib
import json
import math
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from measure import Contention, fail, peak_memory_gb
from pairs import read_rows

Row = dict[str, Any]
"""One prompt: `prompt` (messages), `prompt_ids`, `answers` (ids of each), `logprobs` (of each token, as sampled)."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of every program here, on both sides."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    options.add_argument("--data", type=Path, required=True, help="JSONL whose rows have a prompt (messages)")
    options.add_argument("--prompts", type=int, default=4, help="a step")
    options.add_argument("--answers", type=int, default=8, help="to each prompt")
    options.add_argument("--tokens", type=int, default=64, help="of each answer, no more and no fewer")
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--clock", choices=("all", "warm"), default="all", help="warm: without the first step")
    options.add_argument("--memory-limit", type=float, default=20.0, help="GB; 0: none")
    return options


def add_training(options: argparse.ArgumentParser) -> None:
    """Options of training, on both sides."""
    options.add_argument("--rollouts", type=Path, help="answers to train on (own_online.py --out); default: sampled")
    options.add_argument("--lr", type=float, default=1e-6)
    options.add_argument("--schedule", choices=("linear", "constant"), default="linear")
    options.add_argument("--kl-coef", type=float, help="default: 0 for GRPO (no reference is computed), 0.05 for PPO")


def add_epochs(options: argparse.ArgumentParser) -> None:
    """Options of PPO, on both sides."""
    options.add_argument("--epochs", type=int, default=1, help="of PPO over each batch")
    options.add_argument("--minibatches", type=int, default=1, help="of each epoch of PPO, an optimiser step each")


def add_peer(options: argparse.ArgumentParser, *, batch: int) -> None:
    """Settings that only the peer has."""
    options.add_argument("--batch", type=int, default=batch, help="answers at once")
    options.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    options.add_argument("--weights", choices=("autocast", "bf16", "fp32"), default="autocast", help="fp32: to compare")
    options.add_argument("--malloc", choices=("default", "keep"), default="default", help="keep: glibc keeps pages")


def check(args: argparse.Namespace) -> None:
    """Fail early on sizes that do not divide each other."""
    if (args.prompts * args.answers) % args.batch:
        fail(f"--batch {args.batch} does not divide the {args.prompts * args.answers} answers of a step")


def messages(prompt: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns, role and content alone."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


def read_prompts(args: argparse.Namespace) -> list[list[dict[str, str]]]:
    """As many distinct prompts of the file as the run needs, drawn at random; a longer run begins with the same."""
    wanted = args.prompts * args.steps
    found = {json.dumps(messages(row["prompt"])): messages(row["prompt"]) for row in read_rows(args.data)}
    if len(found) < wanted:
        fail(f"{args.data} has {len(found)} prompts, {wanted} are needed; lower --steps or --prompts")
    return random.Random(args.seed).sample(list(found.values()), len(found))[:wanted]


def read_rollouts(args: argparse.Namespace) -> list[Row]:
    """The file's first rows, as many as the run needs, of the size asked for."""
    if not args.rollouts.is_file():
        fail(f"{args.rollouts}: no such file; own_online.py --task sampling --out writes one")
    rows = [json.loads(line) for line in args.rollouts.read_text(encoding="utf-8").splitlines()]
    rows = rows[: args.prompts * args.steps]
    if len(rows) < args.prompts * args.steps:
        fail(f"{args.rollouts} has {len(rows)} prompts, {args.prompts * args.steps} are needed")
    if any([len(ids) for ids in row["answers"]] != [args.tokens] * args.answers for row in rows):
        fail(f"{args.rollouts}: not every prompt has {args.answers} answers of {args.tokens} tokens")
    return rows


def write_rollouts(path: Path, rows: Iterable[Row]) -> None:
    """One row a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def by_step(items: list[Any], size: int) -> list[list[Any]]:
    """`size` at a time."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def reward(ids: list[int]) -> float:
    """What every benchmark pays: as good as random, the same on both sides, free, and never a tie of a whole group."""
    return sum(ids) % 1000 / 1000


def critic_head(width: int, seed: int) -> Any:
    """[1, width] where the critic's head starts on both sides: not at 0, or its body's first gradient would be."""
    import torch

    return torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)


class Clock:
    """Seconds of each step, and of what happens in it that is not training."""

    def __init__(self) -> None:
        self.contention = Contention()
        self.marks: list[float] = []
        self.apart: list[dict[str, float]] = []

    def start(self) -> None:
        self.contention.start()
        self.marks, self.apart = [time.perf_counter()], [{}]

    @contextlib.contextmanager
    def leave_out(self, name: str) -> Iterator[None]:
        """What runs inside is not the training's time; it is kept under `name`."""
        before = time.perf_counter()
        yield
        spent = time.perf_counter() - before
        self.apart[-1][name] = self.apart[-1].get(name, 0.0) + spent

    def step(self) -> None:
        self.marks.append(time.perf_counter())
        self.apart.append({})

    def measured(self, args: argparse.Namespace) -> dict[str, Any]:
        """Of the record: seconds, speed, contention and memory up to now."""
        contention, memory = self.contention.stop(), peak_memory_gb()
        whole = [after - before for before, after in zip(self.marks[:-1], self.marks[1:], strict=True)]
        steps = [seconds - sum(apart.values()) for seconds, apart in zip(whole, self.apart, strict=False)]
        first = 1 if args.clock == "warm" else 0
        if len(steps) <= first:
            raise RuntimeError(f"{len(steps)} steps are too few for the clock {args.clock!r}")
        tokens = args.prompts * args.answers * args.tokens * (len(steps) - first)
        seconds = sum(steps[first:])
        names = dict.fromkeys(name for apart in self.apart for name in apart)
        return {
            "num_steps": len(steps),
            "clocked_tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 3),
            "step_seconds": [round(value, 3) for value in steps],
            **{f"{name}_seconds": [round(apart.get(name, 0.0), 3) for apart in self.apart[:-1]] for name in names},
            "contention": contention,
            "peak_memory_gb": round(memory, 3),
        }


def told(args: argparse.Namespace) -> dict[str, Any]:
    """The options as a record keeps them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
