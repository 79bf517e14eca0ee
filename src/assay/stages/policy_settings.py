"""Settings of a policy's training that contradict each other, and those that make a run the run it is."""

from collections.abc import Mapping
from typing import Any

from assay.config import PolicyConfig
from assay.config_files import plain
from assay.engine.catalog import hash_of_folder, resolve_model
from assay.engine.load import computed_in
from assay.settings import InputError
from assay.stages.learners import check_critic
from assay.train.buffer import passes

# Known by content, in the identity's other parts, or without a say in the result.
ELSEWHERE = (
    "run",
    "model",
    "reward",
    "reward_rule",
    "reward_penalty",
    "reward_weights",
    "principles",
    "rules",
    "judge",
)
ELSEWHERE += ("criterion", "environment", "ignore_gate", "checkpoints", "oracle", "watch", "watch_every", "stop")
ELSEWHERE += ("faults", "token_budget")
DRAWS = ("greedy", "reference", "mixture")


def check(config: PolicyConfig) -> None:
    """Settings that contradict each other or would be passed over."""
    if config.algorithm.data == "rollouts":
        check_answers(config)
        check_tokens_paid(config)
    else:
        check_offline(config)
    check_passed_over(config)
    check_critic(config)
    check_kl(config)
    check_watch(config)


def check_answers(config: PolicyConfig) -> None:
    """How many answers there are to a prompt, of whom, and what compares them."""
    algorithm, num = config.algorithm, config.num_answers
    draws = getattr(algorithm, "draws", ())
    if unknown := [name for name in draws if name not in DRAWS]:
        raise InputError(f"{algorithm.name}: draws {unknown[0]!r} is not one of {', '.join(DRAWS)}")
    least, most = getattr(algorithm, "min_answers", 1), getattr(algorithm, "most_answers", num)
    even = getattr(algorithm, "even_answers", False)
    if getattr(algorithm, "baseline", "") == "group":
        least = max(least, 2)
    if num < least:
        raise InputError(f"--num_answers {num}: {algorithm.name} compares at least {least} answers")
    if num > most:
        raise InputError(f"--num_answers {num}: {algorithm.name} samples {most} of its own a prompt")
    if even and num % 2:
        raise InputError(f"--num_answers {num}: {algorithm.name} compares answers two by two")
    _, parts = passes(algorithm)
    if parts > config.batch_size:
        raise InputError(f"--algorithm.num_minibatches {parts}: a batch has {config.batch_size} prompts to divide")
    if hasattr(algorithm, "top_p") and config.sampling.cuts:
        raise InputError(f"--sampling.top_p: {algorithm.name} has a cut of its own, --algorithm.top_p")
    together = num + len(draws)
    if config.judge and (together % 2 or (together > 2 and not even)):
        raise InputError(f"--judge compares two answers: {algorithm.name} has {together} to a prompt here")
    if config.environment and (config.judge or draws or hasattr(algorithm, "top_p") or config.dense.kind):
        raise InputError(f"--environment: {algorithm.name} with these settings reads single answers; leave it out")


def check_tokens_paid(config: PolicyConfig) -> None:
    """Rewards at tokens, of a method that credits tokens and does not reshape the rewards of whole answers."""
    algorithm, kind = config.algorithm, config.dense.kind
    if kind == "rewards" and config.dense.model:
        raise InputError("--dense.kind rewards pays what the reward model says: leave --dense.model out")
    if kind and not getattr(algorithm, "credits_tokens", True):
        raise InputError(
            f"--dense.kind {kind}: {algorithm.name} credits whole answers; reinforce, reinforce_pp and those with a "
            f"critic credit tokens"
        )
    if (kind or config.environment) and getattr(algorithm, "reshapes", False):
        raise InputError(
            f"--algorithm.reward_norm and .reward_clip of {algorithm.name} are about rewards of whole answers: where "
            f"tokens are paid set them to none and 0"
        )


def check_offline(config: PolicyConfig) -> None:
    """What only methods read that sample their own answers."""
    algorithm = config.algorithm
    told: Mapping[str, Any] = {
        "rules": config.rules,
        "reward": config.reward,
        "reward_rule": config.reward_rule,
        "reward_weights": config.reward_weights,
        "judge": config.judge,
        "environment": config.environment,
        "dense.kind": config.dense.kind,
        "reward_weight": config.reward_weight != 1,
        "principles.path": config.principles.path,
        "principles.told": config.principles.told,
        "num_answers": changed(config, "num_answers"),
    }
    for flag, given in told.items():
        if given:
            raise InputError(
                f"--{flag}: {algorithm.name} learns from {algorithm.data} and reads no reward; leave it out"
            )
    if config.cut_answers != "keep":
        raise InputError(f"--cut_answers: {algorithm.name} samples no answers that could be cut; leave it out")


def check_without_model(config: PolicyConfig) -> None:
    """Rewards that need no reward model, and no setting of one."""
    if not (config.rules or config.environment or config.judge):
        raise InputError("--reward is missing: give a reward model, --rules, a --judge or an --environment")
    told: Mapping[str, Any] = {
        "reward_rule": config.reward_rule,
        "reward_weights": config.reward_weights,
        "reward_weight": config.reward_weight != 1,
        "principles.path": config.principles.path,
        "principles.told": config.principles.told,
    }
    for flag, given in told.items():
        if given:
            raise InputError(f"--{flag}: there is no reward model that it could be about; give one with --reward")


def check_passed_over(config: PolicyConfig) -> None:
    """Settings that nothing reads beside the others that were given."""
    algorithm = config.algorithm
    if config.max_tokens and algorithm.data == "rollouts" and all(t.stream == "main" for t in algorithm.losses()):
        raise InputError("--max_tokens bounds what is read, and answers are sampled here: set --sampling.max_tokens")
    alone = {
        ("criterion", "judge"): (config.criterion, config.judge),
        ("dense.model", "dense.kind"): (config.dense.model, config.dense.kind),
        ("reference.share", "reference.every"): (config.reference.share != 1, config.reference.every),
        ("cut_penalty", "cut_answers penalty"): (config.cut_penalty != 1, config.cut_answers == "penalty"),
        ("max_turns", "environment"): (config.max_turns != 4, config.environment),
        ("reward_penalty", "reward_rule"): (config.reward_penalty != 1, config.reward_rule),
        ("algorithm.kl_horizon", "algorithm.target_kl"): (
            changed(algorithm, "kl_horizon"),
            getattr(algorithm, "target_kl", 0),
        ),
        ("algorithm.kl_estimator", "algorithm.kl_in loss"): (
            changed(algorithm, "kl_estimator"),
            getattr(algorithm, "kl_in", "loss") == "loss",
        ),
    }
    for (flag, other), (given, there) in alone.items():
        if given and not there:
            raise InputError(f"--{flag} does nothing without --{other}: give that too, or leave it out")


def changed(settings: Any, name: str) -> bool:
    """Whether a field has another value than its default; False where there is no such field."""
    known = getattr(settings, "__dataclass_fields__", {})  # an algorithm of one's own may be any class
    return name in known and getattr(settings, name) != known[name].default


def check_kl(config: PolicyConfig) -> None:
    """A KL that is asked for and that the method would not charge, and a reference that it does not have."""
    algorithm = config.algorithm
    asked = [name for name in ("kl_coef", "target_kl") if getattr(algorithm, name, 0)]
    if asked and not getattr(algorithm, "charges_kl", True):
        raise InputError(f"--algorithm.{asked[0]}: {algorithm.name} charges no KL beside its beta; leave it out")
    if asked == ["target_kl"]:
        raise InputError("--algorithm.target_kl needs a coefficient to begin with: set --algorithm.kl_coef above 0")
    if "target_kl" in asked and config.critic.alone:
        raise InputError(
            f"--algorithm.target_kl: the KL is 0 while the critic is trained alone, here for {config.critic.alone} "
            f"steps, and the coefficient would sink; set --critic.alone 0, or leave --algorithm.target_kl out"
        )
    if config.reference.every and getattr(algorithm, "replay", "") == "cumulative":
        raise InputError(
            f"--reference.every: {algorithm.name} compares all answers so far with one reference; leave it out, or "
            f"set --algorithm.replay latest"
        )
    if config.reference.every and not algorithm.reference:
        raise InputError(f"--reference.every: {algorithm.name} with these settings has no reference; leave it out")


def check_watch(config: PolicyConfig) -> None:
    """What is watched, and limits on what nothing measures."""
    algorithm, stop = config.algorithm, config.stop
    if bool(config.oracle) != bool(config.watch.path):
        missing = "watch.path" if config.oracle else "oracle"
        raise InputError(f"--{missing} is missing: the oracle is watched on held-out prompts, so both are needed")
    if stop.oracle_drop and not config.oracle:
        raise InputError("--stop.oracle_drop: there is no oracle to watch; name one with --oracle")
    online = algorithm.data == "rollouts"
    of_own = getattr(algorithm, "replay", "latest") == "latest"  # else the batch is of older policies' answers too
    measured = {"entropy": online, "length": online, "uncertainty": online}
    measured["kl"] = online and algorithm.reference and of_own
    for name, there in measured.items():
        if getattr(stop, name) and not there:
            raise InputError(f"--stop.{name}: {algorithm.name} with these settings does not measure it; leave it out")


def identity(config: PolicyConfig) -> dict[str, Any]:
    """The settings that shape the result; data, base, code and rewards are known by content, not by where they lie."""
    told = {**plain(config), "dtype": computed_in(config.dtype)}
    for data in (told["data"], *told["streams"].values()):
        data.pop("path")
    told["dense"].pop("model")
    told["algorithm"]["name"] = told["algorithm"]["name"].rpartition(":")[2]
    if (start := config.critic.start) not in ("", "policy", "reward"):
        told["critic"]["start"] = hash_of_folder(resolve_model(start).path)
    return {name: value for name, value in told.items() if name not in ELSEWHERE}
