"""Settings of a policy's training that contradict each other, and those that make a run the run it is."""

from typing import Any

from assay.config import PolicyConfig
from assay.config_files import plain
from assay.settings import InputError
from assay.stages.learners import check_critic

ELSEWHERE = ("run", "model", "reward", "reward_rule", "reward_penalty", "principles", "rules", "judge", "criterion")
ELSEWHERE += ("checkpoints", "oracle", "watch", "watch_every", "stop", "faults", "token_budget")


def check(config: PolicyConfig) -> None:
    """Settings that contradict each other or would be passed over."""
    algorithm = config.algorithm
    least = getattr(algorithm, "min_answers", 1)
    if algorithm.data == "rollouts" and config.num_answers < least:
        raise InputError(f"--num_answers {config.num_answers}: {algorithm.name} compares at least {least} answers")
    most = getattr(algorithm, "most_answers", config.num_answers)
    if algorithm.data == "rollouts" and config.num_answers > most:
        raise InputError(f"--num_answers {config.num_answers}: {algorithm.name} samples {most} of its own a prompt")
    if getattr(algorithm, "even_answers", False) and config.num_answers % 2:
        raise InputError(f"--num_answers {config.num_answers}: {algorithm.name} compares answers two by two")
    parts = getattr(algorithm, "num_minibatches", 1)
    if parts > config.batch_size:
        raise InputError(f"--algorithm.num_minibatches {parts}: a batch has {config.batch_size} prompts to divide")
    if hasattr(algorithm, "top_p") and config.sampling.cuts:
        raise InputError(f"--sampling.top_p: {algorithm.name} has a cut of its own, --algorithm.top_p")
    together = config.num_answers + len(getattr(algorithm, "draws", ()))
    if config.judge and (together % 2 or (together > 2 and not getattr(algorithm, "even_answers", False))):
        raise InputError(f"--judge compares two answers: {algorithm.name} has {together} to a prompt here")
    if config.environment and (
        config.judge or getattr(algorithm, "draws", ()) or hasattr(algorithm, "top_p") or config.dense.kind
    ):
        raise InputError(f"--environment: {algorithm.name} with these settings reads single answers; leave it out")
    check_critic(config)
    check_kl(algorithm)
    if (config.dense.kind or config.environment) and (
        getattr(algorithm, "reward_norm", "none") != "none" or getattr(algorithm, "reward_clip", 0)
    ):
        raise InputError(
            f"--algorithm.reward_norm and .reward_clip of {algorithm.name} are about rewards of whole answers: where "
            f"tokens are paid set them to none and 0"
        )
    if algorithm.data != "rollouts" and (config.rules or config.reward or config.reward_rule):
        flag = "rules" if config.rules else "reward" if config.reward else "reward_rule"
        raise InputError(f"--{flag}: {algorithm.name} learns from {algorithm.data} and reads no reward; leave it out")
    if config.stop.oracle_drop and not config.oracle:
        raise InputError("--stop.oracle_drop: there is no oracle to watch; name one with --oracle")
    if bool(config.oracle) != bool(config.watch.path):
        missing = "watch.path" if config.oracle else "oracle"
        raise InputError(f"--{missing} is missing: the oracle is watched on held-out prompts, so both are needed")


def check_kl(algorithm: Any) -> None:
    """A KL that is asked for and that the method would not charge."""
    asked = [name for name in ("kl_coef", "target_kl") if getattr(algorithm, name, 0)]
    if asked and not getattr(algorithm, "charges_kl", True):
        raise InputError(f"--algorithm.{asked[0]}: {algorithm.name} charges no KL beside its beta; leave it out")
    if asked == ["target_kl"]:
        raise InputError("--algorithm.target_kl needs a coefficient to begin with: set --algorithm.kl_coef above 0")


def updates(algorithm: Any) -> int:
    """Optimiser steps on each batch."""
    return getattr(algorithm, "num_epochs", 1) * getattr(algorithm, "num_minibatches", 1)


def identity(config: PolicyConfig) -> dict[str, Any]:
    """The settings that shape the result; data, base and reward are known by their content, not by where they lie."""
    told = plain(config)
    for data in (told["data"], *told["streams"].values()):
        data.pop("path")
    return {name: value for name, value in told.items() if name not in ELSEWHERE}
