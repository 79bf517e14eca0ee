"""Training speed beside TRL at its fastest settings, on the same pairs, in one run.

Both sides run in turn, in processes of their own; medians of the repeats and their ratios are printed and kept under
benchmarks/results/. TRL's settings are the fastest that `peer/screen.py` found on this machine; without a screen the
ones it found fastest elsewhere are taken, and said so. Long runs: about half an hour on 2 cores.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peer"))

from measure import without_places  # noqa: E402
from screen import fastest, read_results  # noqa: E402

SHARED = HERE.parent.parent / "shared" / "data"
DEFAULT_PAIRS = SHARED / "pairs_hh_test_human_plus_relabel.jsonl"
DEFAULT_GROUPS = SHARED / "kwise_finegrained_qa.jsonl"
USUAL = {"batch": 1, "order": "random", "attention": "eager", "malloc": "default"}


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peer-python", default=str(HERE.parent / ".venv-peer" / "bin" / "python"))
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--data", type=Path, default=DEFAULT_PAIRS, help="JSONL: prompt, chosen, rejected")
    options.add_argument("--groups", type=Path, default=DEFAULT_GROUPS, help="rows of 4 ranked answers; '' leaves out")
    options.add_argument("--num-pairs", type=int, default=32)
    options.add_argument("--num-groups", type=int, default=8)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--tasks", nargs="+", default=["reward", "dpo", "long", "losses"])
    options.add_argument("--results", type=Path, default=HERE / "results" / "bench.jsonl")
    return options.parse_args()


def last_line(command: list[str]) -> dict[str, Any]:
    """A program's answer."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\nfailed: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peer_settings(task: str, data: Path, weights: str) -> dict[str, Any]:
    """TRL's fastest settings for these rows as a screen found them; without one the usual, and that is said."""
    results = [line for line in read_results(HERE / "results" / "screen.jsonl") if "answer" in line]
    for row in fastest(results):
        if (row["task"], row["data"], row["weights"]) == (task, data.name, weights):
            return {name: row[name] for name in USUAL}
    print(f"{task}, {data.name}, {weights}: no screen; TRL takes {USUAL}", file=sys.stderr)
    return dict(USUAL)


def sides(task: str, args: argparse.Namespace, model: str, groups: Path) -> dict[str, list[Any]]:
    """The commands to compare: ours, TRL like for like, TRL in its fastest mode."""
    long = task == "long"
    kind = "reward" if long else task
    data = groups if long else args.data
    pairs = 2 * args.num_groups if long else args.num_pairs
    common = ["--model", model, "--data", data, "--num-pairs", pairs, "--lr", "1e-5", "--clock", "warm"]
    found = {"assay": [sys.executable, HERE / "own.py", "--task", kind, *common]}
    for name, weights in (("TRL, fp32 weights", "autocast"), ("TRL, bf16 weights", "bf16")):
        told = [f"--{key}={value}" for key, value in peer_settings(kind, data, weights).items()]
        length = ["--max-length", 2048 if long else 1024]
        command = [args.peer_python, HERE / "peer" / f"{kind}.py", *common, *told, *length, "--weights", weights]
        found[name] = [*command, "--reference", "step"] if kind == "dpo" else command
        if kind == "dpo" and weights == "autocast":
            found[f"{name}, head on answers"] = [*found[name], "--positions", "answers"]
    return found


def speed(record: dict[str, Any]) -> float:
    """Pairs of the usual length a second, the reference's share of the work included.

    A side that sorts by length has the longest pairs in its first step, which the clock leaves out: what counts is the
    text that was trained on in the time, not how many pairs it came in.
    """
    pairs = record["clocked_work"] / record["tokens"] * record["num_pairs"]
    found = record.get("pairs_per_second_with_reference") or record["pairs_per_second"]
    return found * pairs / record["clocked_pairs"]


def compare(task: str, commands: dict[str, list[Any]], repeats: int, out: Path) -> dict[str, list[dict[str, Any]]]:
    """All sides in turn, `repeats` times; every record is kept."""
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for repeat in range(repeats):
        for name, command in commands.items():
            record = without_places(last_line(command))
            records[name].append(record)
            line = {"task": task, "row": name, "repeat": repeat, "time": time.strftime("%Y-%m-%d"), "record": record}
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            told = f"{speed(record):.3f} pairs/s, {record['peak_memory_gb']:.2f} GB"
            print(f"{task} {repeat + 1}/{repeats} {name}: {told}", file=sys.stderr, flush=True)
    return records


def show(task: str, records: dict[str, list[dict[str, Any]]], peak: float) -> None:
    """Medians, and each row's ratio to ours, run by run."""
    print(f"\n{task}")
    ours = [speed(record) for record in records["assay"]]
    for name, found in records.items():
        speeds = [speed(record) for record in found]
        ratios = sorted(a / b for a, b in zip(ours, speeds, strict=True))
        memory = max(record["peak_memory_gb"] for record in found)
        line = f"  {name:<34} {statistics.median(speeds):7.3f} pairs/s   {memory:5.2f} GB"
        if name == "assay":
            share = statistics.median(record["gflops"] for record in found) / peak
            line += f"   {share:.0%} of the bf16 peak ({peak:.0f} GFLOP/s)"
        else:
            line += f"   assay {statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        moved = found[-1]["moved"]["projections"]
        print(f"{line}   first loss {found[0]['losses'][0]:.4f}, last {found[0]['losses'][-1]:.4f}, moved {moved:.1%}")


def compare_losses(args: argparse.Namespace, model: str, out: Path) -> None:
    """Both sides on the same pairs in the same order from the same head: their losses, step by step.

    In fp32 throughout they differ by the order of additions alone; beside them what each side trains in.
    """
    print("\nlosses, the same pairs in the same order from the same head")
    for task, (own, weights) in itertools.product(("reward", "dpo"), (("float32", "fp32"), ("auto", "autocast"))):
        common = ["--model", model, "--data", args.data, "--num-pairs", args.num_pairs, "--lr", "1e-5"]
        common += ["--order", "given"]
        commands = {
            f"assay, {own}": [
                sys.executable,
                HERE / "own.py",
                "--task",
                task,
                *common,
                "--head",
                "peer",
                "--dtype",
                own,
            ],
            f"TRL, {weights}": [args.peer_python, HERE / "peer" / f"{task}.py", *common, "--weights", weights],
        }
        found = []
        for row, command in commands.items():
            record = last_line(command)
            line = {"task": f"losses, {task}", "row": row, "time": time.strftime("%Y-%m-%d")}
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "record": without_places(record)}) + "\n")
            found.append(record["losses"])
            print(f"  {task:<7} {row:<16} {'  '.join(f'{loss:.4f}' for loss in record['losses'])}")
        print(f"  {'':24} largest difference {max(abs(a - b) for a, b in zip(*found, strict=True)):.1e}")


def main() -> None:
    args = parse()
    if not Path(args.peer_python).exists():
        print("making TRL's environment (once)", file=sys.stderr)
        venv = Path(args.peer_python).parent.parent
        subprocess.run(["bash", HERE / "peer" / "setup.sh", venv, sys.executable], check=True)
    from assay.engine.catalog import resolve_model

    model = resolve_model(args.model).path
    args.results.parent.mkdir(parents=True, exist_ok=True)
    groups = Path("/dev/null")
    if "long" in args.tasks:
        groups = args.results.parent / ".long_groups.jsonl"
        subprocess.run(
            [sys.executable, HERE / "long_groups.py", "--model", model, "--source", args.groups, "--out", groups,
             "--num-groups", str(args.num_groups)], check=True,
        )  # fmt: skip
    machine = last_line([sys.executable, HERE / "machine.py"])
    with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"task": "machine", "record": machine}) + "\n")
    peak = machine["peak_gflops"]["bf16"]
    for task in args.tasks:
        if task == "losses":
            compare_losses(args, model, args.results)
            continue
        records = compare(task, sides(task, args, model, groups), args.repeats, args.results)
        show(task, records, peak)


if __name__ == "__main__":
    main()
