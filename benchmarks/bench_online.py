"""The training steps of GRPO and PPO beside TRL, and sampling beside transformers, on the same answers, in one run.

Both sides run in turn, in processes of their own; medians of the repeats and their ratios are printed and kept under
benchmarks/results/. The answers that are trained on are sampled once, by the project's side, and read by both. Run with
`--screen` first: it finds the peer's fastest settings on this machine. Nothing else may run beside it.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import DEFAULT_GROUPS, DEFAULT_PAIRS, HERE, last_line

sys.path.insert(0, str(HERE / "peer"))

from measure import without_places
from screen import quiet, read_results, run

WORKLOADS: dict[str, dict[str, int]] = {
    "short": {"prompts": 4, "answers": 8},  # HH-RLHF
    "long": {"prompts": 2, "answers": 8},  # of 1,500 tokens
    "single": {"prompts": 32, "answers": 1},  # as "short"; PPO alone can do with one answer
    "small": {"prompts": 2, "answers": 4},  # to compare losses
}
LONGEST = 1500  # tokens of a long prompt
BATCHES = (1, 2, 4, 8, 16, 32)
SLOWER = 0.9  # of the best speed: a batch below it ends the search among larger ones
SCREEN_STEPS = 2  # the first is not counted
USUAL: dict[str, dict[str, Any]] = {  # where a screen begins
    "grpo": {"batch": 1, "attention": "eager", "malloc": "keep"},
    "ppo": {"batch": 1, "attention": "eager", "malloc": "keep", "forward_batch": 0},
    "sampling": {"batch": 8, "attention": "sdpa", "malloc": "keep", "cache": "dynamic"},
}
OTHERS: dict[str, dict[str, Any]] = {  # tried last, beside the fastest
    "grpo": {},
    "ppo": {"forward_batch": 8},
    "sampling": {"cache": "static"},
}
SCREENED_AS = {"single": "short"}  # as many answers of the same length
ROWS = {"autocast": "TRL, fp32 weights", "bf16": "TRL, bf16 weights", "fp32": "TRL, fp32"}
POSITIONS = {"all": "", "answers": ", head on answers"}  # TRL 1.16 without Triton, and as with it; GRPO alone
TRIES = 3  # of a turn in which others took the machine


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peer-python", default=str(HERE.parent / ".venv-peer" / "bin" / "python"))
    options.add_argument("--peer-ppo-python", default=str(HERE.parent / ".venv-peer-ppo" / "bin" / "python"))
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--data", type=Path, default=DEFAULT_PAIRS, help="JSONL with prompts; answers are not read")
    options.add_argument("--groups", type=Path, default=DEFAULT_GROUPS, help="what long prompts are made of")
    options.add_argument("--tasks", nargs="+", choices=("grpo", "ppo", "sampling"), default=["grpo", "ppo", "sampling"])
    options.add_argument("--workloads", nargs="+", choices=tuple(WORKLOADS), default=["short", "long", "single"])
    options.add_argument("--steps", type=int, default=3, help="the first is not counted")
    options.add_argument("--tokens", type=int, default=64, help="of each answer")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--memory-limit", type=float, default=20.0, help="GB")
    options.add_argument("--kl-coef", type=float, help="of both sides; default: 0 for GRPO, 0.05 for PPO")
    options.add_argument("--results", type=Path, default=HERE / "results" / "bench_online.jsonl")
    options.add_argument("--losses", action="store_true", help="compare losses and gradients in fp32, not speed")
    options.add_argument("--screen", action="store_true", help="find the peer's fastest settings")
    options.add_argument("--screened", type=Path, default=HERE / "results" / "screen_online.jsonl")
    told = "of the peer's rows; default: autocast and bf16 where the processor is faster in bf16, else fp32"
    options.add_argument("--weights", nargs="+", choices=tuple(ROWS), help=told)
    options.add_argument("--positions", nargs="+", choices=tuple(POSITIONS), default=list(POSITIONS), help="of GRPO")
    options.add_argument("--timeout", type=int, default=2400, help="seconds of a screened cell")
    options.add_argument("--retry", action="store_true", help="screen again what failed")
    options.add_argument(
        "--unscreened", action="store_true", help="compare with usual settings where none were screened"
    )
    options.add_argument(
        "--max-other-cores", type=float, default=0.15, help="what is measured beside more is not counted"
    )
    return options.parse_args()


def chat_file(workload: str, args: argparse.Namespace, model: str) -> Path:
    """Where the prompts are; long ones are made."""
    if workload != "long":
        return args.data
    path = args.results.parent / f".long_prompts_{args.steps}.jsonl"
    if not path.exists():
        part = path.with_suffix(".part")
        told = ["--source", args.groups, "--model", model, "--out", part, "--tokens", LONGEST]
        num = WORKLOADS["long"]["prompts"] * args.steps
        words = [sys.executable, HERE / "long_groups.py", *told, "--num-groups", num]
        subprocess.run([str(word) for word in words], check=True, stdout=sys.stderr)
        part.rename(path)
    return path


def common(workload: str, args: argparse.Namespace, model: str) -> list[Any]:
    """What every program is told."""
    told = {**WORKLOADS[workload], "model": model, "data": chat_file(workload, args, model)}
    told |= {name: getattr(args, name) for name in ("tokens", "steps", "threads")}
    return [*(f"--{name}={value}" for name, value in told.items()), f"--memory-limit={args.memory_limit}"]


def training(
    task: str, workload: str, args: argparse.Namespace, model: str, words: list[Any], dtype: str = "auto"
) -> list[Any]:
    """What programs that train are told beside it; the answers are sampled where they are not there yet."""
    if task == "sampling":
        return []
    sizes = "x".join(str(size) for size in (*WORKLOADS[workload].values(), args.tokens, args.steps))
    data = chat_file(workload, args, model).stem
    path = args.results.parent / f".rollouts_{Path(model).name}_{workload}_{data}_{sizes}_{dtype}.jsonl"
    if not path.exists():
        own = [sys.executable, HERE / "own_online.py", "--task", "sampling", "--dtype", dtype, *words, "--out", path]
        last_line(own)
    return [f"--rollouts={path}", *([] if args.kl_coef is None else [f"--kl-coef={args.kl_coef}"])]


def peer(task: str, args: argparse.Namespace, settings: dict[str, Any]) -> list[Any]:
    """The peer's program with its settings."""
    python = args.peer_ppo_python if task == "ppo" else args.peer_python
    told = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [python, HERE / "peer" / f"{task}.py", *told]


def kinds_of(task: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The peer's rows, and what sets each apart; sampling needs no fp32 weights."""
    if task == "sampling":
        weights = "fp32" if args.weights == ["fp32"] else "bf16"
        return {f"transformers, {weights}": {"weights": weights}}
    kinds = {ROWS[weights]: {"weights": weights} for weights in args.weights}
    if task == "ppo":
        return kinds
    both = itertools.product(args.positions, kinds.items())
    return {f"{row}{POSITIONS[name]}": {**kind, "positions": name} for name, (row, kind) in both}


def fastest(task: str, workload: str, kind: dict[str, Any], args: argparse.Namespace) -> dict[str, Any] | None:
    """The peer's settings of the highest speed that were screened in quiet; None without a screen.

    Without one of its own, a head on answers has those of TRL as installed.
    """
    found = {}
    for line in read_results(args.screened):
        settings = {name: line["cell"].get(name) for name in USUAL[task]}
        if line["cell"] == cell_of(task, workload, {**kind, **settings}, args) and quiet(line, args.max_other_cores):
            found[line["answer"]["tokens_per_second"]] = settings
    if not found and kind.get("positions") == "answers":
        return fastest(task, workload, {**kind, "positions": "all"}, args)
    return found[max(found)] if found else None


def cell_of(task: str, workload: str, settings: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """What is screened, by everything that its speed hangs on."""
    sizes = {"steps": SCREEN_STEPS, "tokens": args.tokens, "kl_coef": args.kl_coef, "data": args.data.name}
    sizes |= {"prompts": "drawn"}  # once they were the file's first, which are shorter than most
    return {"task": task, "workload": workload, **settings, **sizes}


def screen(task: str, workload: str, args: argparse.Namespace, model: str) -> None:
    """One setting after the other, each at the best of those before: attention, batch, attention again, the others.

    Batches grow until one is clearly slower than the best.
    """
    args.steps = SCREEN_STEPS
    words = common(workload, args, model)
    words += [*training(task, workload, args, model, words), "--clock=warm"]
    num = WORKLOADS[workload]["prompts"] * WORKLOADS[workload]["answers"]

    def speed(settings: dict[str, Any]) -> float:
        """Tokens a second; 0 for what fails."""
        cell = cell_of(task, workload, settings, args)
        for line in read_results(args.screened):
            if line["cell"] == cell and (quiet(line, args.max_other_cores) or ("failed" in line and not args.retry)):
                return line["answer"]["tokens_per_second"] if "answer" in line else 0.0
        command = [*peer(task, args, settings), *words]
        for _ in range(TRIES):
            line = run(cell, [str(word) for word in command], args.timeout)
            with args.screened.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            found = line["answer"]["tokens_per_second"] if "answer" in line else 0.0
            print(f"{settings}: {line.get('failed', f'{found:.1f} tokens/s')}", file=sys.stderr, flush=True)
            if "failed" in line or quiet(line, args.max_other_cores):
                return found
        raise SystemExit(f"{cell}: others took the machine {TRIES} times; run again when it is quiet")

    for row, kind in kinds_of(task, args).items():
        best = {**kind, **USUAL[task]}
        best["attention"] = max(("eager", "sdpa"), key=lambda name: speed({**best, "attention": name}))
        speeds: dict[int, float] = {}
        for batch in (batch for batch in BATCHES if num % batch == 0):
            speeds[batch] = speed({**best, "batch": batch})
            if speeds[batch] < SLOWER * max(speeds.values()):
                break
        best["batch"] = max(speeds, key=lambda batch: speeds[batch])
        for name, value in {"attention": "sdpa" if best["attention"] == "eager" else "eager", **OTHERS[task]}.items():
            if speed({**best, name: value}) > speed(best):
                best[name] = value
        print(f"{task}, {workload}, {row}: {speed(best):.1f} tokens/s with {best}", flush=True)


def keep(args: argparse.Namespace, task: str, row: str, record: dict[str, Any], **turn: Any) -> None:
    """A line of the results."""
    line = {"task": task, "row": row, **turn, "time": time.strftime("%Y-%m-%d %H:%M"), "record": without_places(record)}
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def sides_of(task: str, workload: str, args: argparse.Namespace, words: list[Any]) -> dict[str, list[Any]]:
    """The commands to compare: ours, and the peer's at its fastest on each of its rows."""
    sides = {"assay": [sys.executable, HERE / "own_online.py", "--task", task, *words]}
    for row, kind in kinds_of(task, args).items():
        settings = fastest(task, SCREENED_AS.get(workload, workload), kind, args)
        if settings is None and not args.unscreened:
            raise SystemExit(f"{task}, {workload}, {row}: no screen in {args.screened}; run with --screen first")
        sides[row] = [*peer(task, args, {**kind, **(settings or USUAL[task])}), *words]
    return sides


def measure(command: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    """A record that was measured while nobody else took the machine, or after `TRIES` the last."""
    record: dict[str, Any] = {}
    for _ in range(TRIES):
        record = last_line(command)
        if quiet({"answer": record}, args.max_other_cores):
            break
    return record


def compare(task: str, workload: str, args: argparse.Namespace, model: str) -> None:
    """All sides in turn; medians, and each row's ratio to ours, turn by turn."""
    words = common(workload, args, model)
    words += [*training(task, workload, args, model, words), "--clock=warm"]
    sides = sides_of(task, workload, args, words)
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in sides}
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    for turn, (row, command) in itertools.product(range(args.repeats), sides.items()):
        record = measure(command, args)
        found[row].append(record)
        keep(args, f"{task}, {workload}", row, record, run=began, repeat=turn)
        said = f"{record['tokens_per_second']:.1f} tokens/s, {record['peak_memory_gb']:.2f} GB"
        print(f"{task}, {workload} {turn + 1}/{args.repeats} {row}: {said}", file=sys.stderr, flush=True)
    print(f"\n{task}, {workload}: tokens of answers a second")
    for row, records in found.items():
        speeds = [record["tokens_per_second"] for record in records]
        memory = max(record["peak_memory_gb"] for record in records)
        pairs = zip(found["assay"], records, strict=True)
        ratios = sorted(own["tokens_per_second"] / one["tokens_per_second"] for own, one in pairs)
        line = f"  {row:<32} {statistics.median(speeds):8.1f}   {memory:5.2f} GB"
        if row != "assay":
            line += f"   assay {statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        moved = records[-1].get("moved")
        print(line + (f"   moved {moved['projections']:.1%}" if moved else ""))


def compare_losses(task: str, args: argparse.Namespace, model: str) -> None:
    """Both sides in fp32 on the same answers: losses and the norms of gradients, which must agree.

    GRPO with a KL, whose loss would be 0 otherwise. PPO one batch twice: answers from a file are the first policy's
    alone, and TRL takes their log-probabilities for the old ones where the project computes them anew.
    """
    args.steps = 1 if task == "ppo" else 2
    words = common("small", args, model)
    more = ["--epochs=2"] if task == "ppo" else ["--kl-coef=0.04"]
    norms = ["--norms"] if task == "ppo" else []  # TRL's GRPO keeps them by itself
    words += [*training(task, "small", args, model, words, "float32"), *more, "--lr=1e-5"]
    sides = {
        "assay": [sys.executable, HERE / "own_online.py", "--task", task, "--dtype=float32", *words],
        "TRL": [*peer(task, args, {"batch": 1, "weights": "fp32"}), *norms, *words],
    }
    for row, command in sides.items():
        record = last_line(command)
        keep(args, f"losses, {task}", row, record)
        print(f"{task}, {row}: losses {record['losses']}, gradient norms {record['grad_norms']}")


def main() -> None:
    args = parse()
    from assay.engine.catalog import resolve_model
    from assay.engine.load import computed_in

    model = resolve_model(args.model).path
    args.weights = args.weights or (["autocast", "bf16"] if computed_in("auto") == "bfloat16" else ["fp32"])
    args.results.parent.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        python = args.peer_ppo_python if task == "ppo" else args.peer_python
        if not os.access(python, os.X_OK):
            raise SystemExit(f"{python}: there is no such environment; benchmarks/README.md says how to make it")
    for task in args.tasks:
        if args.losses and task != "sampling":
            compare_losses(task, args, model)
        if args.losses:
            continue
        for workload in args.workloads:
            if args.screen and workload not in SCREENED_AS:
                screen(task, workload, args, model)
            if not args.screen and (workload != "single" or task == "ppo"):
                compare(task, workload, args, model)


if __name__ == "__main__":
    main()
