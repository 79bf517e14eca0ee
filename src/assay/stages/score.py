"""assay score, verify, report and models: small verbs."""

import json
from collections.abc import Sequence
from pathlib import Path

from assay.config import ModelsConfig, ReportConfig, ScoreConfig, VerifyConfig
from assay.engine.catalog import list_models, resolve_model
from assay.feedback.read import read_demonstrations
from assay.records import Message, Prompt, Response, user_prompt
from assay.report.html import write_report
from assay.report.run import write_text
from assay.rewards.contract import verify
from assay.settings import InputError
from assay.stages.common import open_run, read, require
from assay.stages.opening import open_reward
from assay.stages.progress import console, say, table

PROBES = (
    "Yes.",
    "I am not sure, but I think it is the second one. Let me explain why in a few words.",
    "No! That would be a terrible idea.\n\n1. It costs too much.\n2. It takes too long.",
)


def score(config: ScoreConfig) -> list[float]:
    """Rewards of conversations (`messages`, or `prompt` and `completion`), one JSON line each."""
    name = require(config.reward, "reward", "a reward model")
    records = read(read_demonstrations, config.data)
    reward = open_reward(name, dtype=config.dtype, token_budget=config.token_budget)
    rewards = reward.score([(record.prompt, record.response) for record in records])
    lines = [json.dumps({"id": r.id, "reward": value}) for r, value in zip(records, rewards, strict=True)]
    if config.out:
        write_text(Path(config.out), "\n".join(lines) + "\n")
        say(f"{len(lines)} rewards: {config.out}")
    else:
        for line in lines:
            console.print(line, markup=False)
    return rewards


def check(config: VerifyConfig) -> str:
    """Compare a saved reward model with plain transformers."""
    source = resolve_model(require(config.reward, "reward", "a reward model's folder"))
    conversations: Sequence[tuple[Prompt, Response]] = [
        (user_prompt(f"Question {index}: what should I do next?"), (Message("assistant", answer),))
        for index, answer in enumerate(PROBES)
    ]
    found = verify(Path(source.path), conversations)
    say(found)
    return found


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
