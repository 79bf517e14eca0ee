"""What experiments with policies share: the demo's prompts and audited reward model, one policy run, its figures."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assay.audit.statistics import Estimate
from assay.config import DemoConfig
from assay.recipes.demo import Settings, once, write_prompts
from assay.report.run import RunDirectory
from assay.stages import audit, collect, reward
from grid import Cell, fill
from human_pairs import HERE, run_assay, shown

RUNS = HERE.parent / "runs"
TOKENS = 40  # of an answer, as the reward model was trained on


@dataclass(frozen=True)
class Demo:
    """Files and the reward model that every cell starts from."""

    reward: Path
    train: Path
    held_out: Path


def demo(run: Path, seed: int = 0) -> Demo:
    """The demo up to its audit: four answers to each prompt, compared by a simulated annotator; kept between runs."""
    place = RunDirectory(str(run))
    prompts = write_prompts(place)
    settings = Settings(place, prompts, DemoConfig(run=str(run), seed=seed))
    once(place, "collect", settings.collect(), collect.run)
    once(place, "reward", settings.reward(), reward.run)
    once(place, "audit", settings.audit(), audit.run)
    return Demo(place.reward, prompts["train"], prompts["held_out"])


def train(demo: Demo, run: Path, words: Sequence[object], *, seed: int, steps: int, watch: int, every: int) -> None:
    """One policy against the demo's reward, the oracle watched on `watch` held-out prompts every so many steps."""
    shutil.rmtree(run, ignore_errors=True)
    told = ["--run", run, "--data.path", demo.train, "--reward", demo.reward, "--ignore_gate", "true", "--seed", seed]
    told += ["--sampling.max_tokens", TOKENS, "--steps", steps, "--optimiser.schedule", "constant"]
    told += ["--oracle", "text", "--watch.path", demo.held_out, "--watch.limit", watch, "--watch_every", every]
    run_assay("policy", *told, "--checkpoints.every", 0, *words)


def tested(demo: Demo, run: Path, *, num: int, seed: int) -> dict[str, Any]:
    """The policy against its base on `num` held-out prompts by the oracle, and what was logged on the way."""
    told = ["--run", run, "--prompts.path", demo.held_out, "--num_prompts", num, "--oracle", "text", "--seed", seed + 1]
    run_assay("evaluate", *told, "--reward", demo.reward, "--sampling.max_tokens", TOKENS)
    findings = json.loads((run / "evaluation.json").read_text())["findings"]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    place = RunDirectory(str(run))
    kept = ("step", "reward", "oracle", "oracle_error", "proxy", "kl", "entropy", "length_mean", "ref_nll")
    curve = [{name: row[name] for name in kept if name in row} for row in place.read_metrics("policy")]
    notes = json.loads(place.provenance.read_text())["policy"]
    found = {f["probe"]: {name: f.get(name) for name in ("value", "interval", "n")} for f in findings}
    for folder in ("policy", "checkpoints"):
        shutil.rmtree(run / folder, ignore_errors=True)
    told_why = {name: notes[name] for name in ("stopped", "kept_step") if name in notes}
    return {"findings": found, "curve": curve, "num_samples": len(samples), **told_why}


def policies(
    args: argparse.Namespace, cells: Sequence[Cell], plan: Callable[[Cell], tuple[Sequence[object], dict[str, int]]]
) -> list[dict[str, Any]]:
    """The lines of a grid of policies, each trained as `plan` says (words; steps, looks, prompts) and then tested."""
    ready = demo(args.run / "demo")
    digest = hashlib.sha256((ready.reward / "model.safetensors").read_bytes()).hexdigest()[:12]

    def compute(cell: Cell) -> dict[str, Any]:
        words, sizes = plan(cell)
        run, seed = args.run / "_".join([args.results.stem, *map(str, cell.values())]), cell["seed"]
        train(ready, run, words, seed=seed, steps=sizes["steps"], watch=sizes["watch"], every=sizes["every"])
        found = tested(ready, run, num=sizes["tested"], seed=seed)
        return {**found, "reward_model": digest}

    return fill(cells, compute, args.results)


def figure(record: Mapping[str, Any], probe: str) -> str:
    """A finding as value and interval."""
    found = record["findings"].get(probe)
    if not found:
        return "-"
    return shown(Estimate(found["value"], tuple(found["interval"] or (np.nan, np.nan)), found["n"]))


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of a mean over few seeds, by Student's t; NaN for one."""
    from scipy.stats import t

    size = len(values)
    return float(t.ppf(0.975, size - 1) * np.std(values, ddof=1) / np.sqrt(size)) if size > 1 else float("nan")


def over_seeds(values: Sequence[float]) -> str:
    """Mean and its 95% interval over few seeds."""
    mean, half = float(np.mean(values)), half_width(values)
    return f"{mean:6.3f}" if np.isnan(half) else f"{mean:6.3f} ({mean - half:6.3f} to {mean + half:6.3f})"
