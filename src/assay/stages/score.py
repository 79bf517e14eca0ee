"""assay score, verify, average, report and models: small verbs."""

import json
from collections.abc import Sequence
from pathlib import Path

from assay.config import AverageConfig, ModelsConfig, ReportConfig, ScoreConfig, VerifyConfig
from assay.engine.catalog import list_models, resolve_model
from assay.feedback.read import read_answers
from assay.records import Message, Prompt, Response, user_prompt
from assay.report.html import write_report
from assay.report.run import write_text
from assay.rewards import average as averages
from assay.rewards.adapters import adapter_folders
from assay.rewards.contract import verify
from assay.rewards.opening import names_of
from assay.settings import InputError
from assay.stages.common import all_finite, keep_fitting, load_rewards, open_run, read, require
from assay.stages.progress import console, say, table

PROBES = (
    "Yes.",
    "I am not sure, but I think it is the second one. Let me explain why in a few words.",
    "No! That would be a terrible idea.\n\n1. It costs too much.\n2. It takes too long.",
)


def score(config: ScoreConfig) -> list[float]:
    """Rewards of conversations (`messages`, or `prompt` and `completion`), one JSON line each.

    Their standard deviations stand beside them where the model knows any.
    """
    name = require(config.reward, "reward", "a reward model")
    if config.out and Path(config.out).is_dir():
        raise InputError(f"--out {config.out} is a folder: name a file")
    records = read(read_answers, config.data)
    reward = load_rewards(name, config)
    kept = keep_fitting(
        records, lambda record: [reward.encode((record.prompt, record.response))], reward.context, config.data
    )
    records = [record for record, _ in kept]
    outputs = reward.outputs_encoded([encoded for _, (encoded,) in kept])
    rewards = all_finite(reward.readout.reward(outputs).tolist(), [record.id for record in records], name)
    rows = [{"id": record.id, "reward": value} for record, value in zip(records, rewards, strict=True)]
    if (unsure := reward.readout.uncertainty(outputs)) is not None:
        rows = [{**row, "uncertainty": value} for row, value in zip(rows, unsure.tolist(), strict=True)]
    lines = [json.dumps(row) for row in rows]
    if config.out:
        write_text(Path(config.out), "\n".join(lines) + "\n")
        say(f"{len(lines)} rewards: {config.out}")
    else:
        for line in lines:
            console.print(line, markup=False)
    return rewards


def check(config: VerifyConfig) -> str:
    """Compare a saved reward model with plain transformers."""
    name = require(config.reward, "reward", "a reward model's folder")
    found = verify(Path(name if adapter_folders(name) else resolve_model(name).path), probes())
    say(found)
    return found


def average(config: AverageConfig) -> Path:
    """Save the mean of several reward models, and prove what was saved."""
    names = names_of(require(config.reward, "reward", "reward models, separated by commas"))
    out = Path(require(config.out, "out", "a folder for the model"))
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder for the model")
    averages.average(names, out, config.weights)
    say(verify(out, probes()))
    say(f"reward model: {out}")
    return out


def probes() -> Sequence[tuple[Prompt, Response]]:
    """Conversations of several lengths."""
    return [
        (user_prompt(f"Question {index}: what should I do next?"), (Message("assistant", answer),))
        for index, answer in enumerate(PROBES)
    ]


def report(config: ReportConfig) -> Path:
    """Write `report.html`."""
    place = open_run(config.run)
    if not place.path.is_dir():
        raise InputError(f"{place.path}: no such run directory")
    path = write_report(place)
    say(f"report: {path}")
    return path


def models(_: ModelsConfig) -> None:
    """Print what is at hand."""
    table("models at hand", [{"name": m.name, "where": m.path, "from": m.origin} for m in list_models()])
