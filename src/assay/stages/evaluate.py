"""assay evaluate: a policy against its base on held-out prompts, judged by an oracle or a reward model."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from assay.audit.statistics import bootstrap_mean, length_controlled_win_rate, paired_bootstrap, win_rate
from assay.config import DataSettings, EvaluateConfig
from assay.config_files import plain
from assay.engine.catalog import DEFAULT_MODEL, resolve_model
from assay.engine.learner import Learner
from assay.engine.model import tempered
from assay.feedback.read import read_prompts, read_texts
from assay.records import Finding, Prompt, Rollout, text_of
from assay.report.run import RunDirectory, Sample, read_json, write_json
from assay.settings import InputError
from assay.stages.common import all_finite, distinct_pairs, load_oracle, load_rewards, open_run, read
from assay.stages.progress import say, table
from assay.stages.sampling import PolicySampler
from assay.tokens.chat import Encoded, collate

TEXT_TOKENS = 512  # of each plain text; enough to see a change, cheap enough to run


def run(config: EvaluateConfig) -> list[Finding]:
    """Sample both on the same prompts, compare, write `evaluation.json` and `samples.jsonl`."""
    place = open_run(config.run)
    prompts = read(read_prompts, config.prompts, "prompts")[: config.num_prompts]
    policy_name = config.policy or str(place.policy)
    named = config.reward or (str(place.reward) if place.reward.exists() else "")
    if not config.oracle and not named:
        raise InputError("--oracle is missing: say what judges, an oracle or a reward model")
    told = {"dtype": config.dtype, "token_budget": config.token_budget}
    oracle = load_oracle(config.oracle, **told) if config.oracle else None
    resolve_model(policy_name)  # an error here, not after the base is loaded
    base_name = base_of(config, place)
    base = PolicySampler.load(base_name, config.sampling, dtype=config.dtype)
    prompts = base.fitting(prompts, config.prompts, "prompts")
    policy = PolicySampler.load(policy_name, config.sampling, dtype=config.dtype)
    sides = [
        sampler.sample(prompts, 1, torch.Generator().manual_seed(config.seed), title)
        for sampler, title in ((base, "base"), (policy, "policy"))
    ]
    reward = load_rewards(named, config) if named else None
    rewards = None
    if reward is not None:
        rewards = [
            all_finite(reward.score([(r.prompt, r.response) for r in side]), [r.prompt.id for r in side], named)
            for side in sides
        ]
    judged = rewards
    if oracle is not None:
        judged = [oracle([r.prompt for r in side], [r.response for r in side]) for side in sides]
    assert judged is not None
    judge = "oracle" if config.oracle else "reward"
    findings = compare(prompts, sides, judged, rewards if config.oracle else None, judge)
    findings += distance(base, policy, sides, config.token_budget)
    if config.text.path:
        findings += likelihood(base, policy, config.text, config.token_budget)
    place.write_samples(samples(sides, judged if config.oracle else None, rewards))
    place.write_config(plain(config), "evaluate")
    write_json(
        place.evaluation,
        {"findings": [finding.to_json() for finding in findings], "settings": plain(config), "judge": judge},
    )
    place.record("evaluate", base=base_name, policy=policy_name, seed=config.seed, num_prompts=len(prompts))
    table("evaluation", [_row(finding) for finding in findings])
    return findings


def base_of(config: EvaluateConfig, place: RunDirectory) -> str:
    """The base that was named, or the one that the run's policy started from."""
    if config.base or not place.provenance.exists():
        return config.base or DEFAULT_MODEL
    return read_json(place.provenance).get("policy", {}).get("base", DEFAULT_MODEL)


def compare(
    prompts: Sequence[Prompt],
    sides: Sequence[Sequence[Rollout]],
    judged: Sequence[Sequence[float]],
    rewards: Sequence[Sequence[float]] | None,
    judge: str,
) -> list[Finding]:
    """Gain, win rates, lengths and variety; `judge` says whose rewards decide: the oracle's, or the reward model's."""
    what = {"oracle": "oracle reward", "reward": "reward"}[judge]
    ids = np.array([prompt.id for prompt in prompts])
    base, policy = (np.array(values) for values in judged)
    lengths = [np.array([len(rollout.ids) for rollout in side], dtype=float) for side in sides]
    outcomes = (policy > base) + 0.5 * (policy == base)
    texts = [[text_of(rollout.response) for rollout in side] for side in sides]
    characters = [np.array([len(text) for text in side], dtype=float) for side in texts]
    controlled = length_controlled_win_rate(outcomes, characters[1] - characters[0], ids)
    found = [
        paired_bootstrap(policy, base, ids).finding("gain", f"mean {what} of the policy minus the base's, paired"),
        bootstrap_mean(base, ids).finding("oracle/base", f"mean {what}"),
        bootstrap_mean(policy, ids).finding("oracle/policy", f"mean {what}"),
        win_rate(outcomes, ids).finding("win_rate", "share of prompts on which the policy is judged better, ties half"),
        controlled.finding("win_rate/length_controlled", "the same at equal length"),
    ]
    if rewards is not None:
        gain = paired_bootstrap(np.array(rewards[1]), np.array(rewards[0]), ids)
        found.append(gain.finding("reward/difference", "mean of the trained reward, policy minus base, paired"))
    for name, side, length, said in zip(("base", "policy"), sides, lengths, texts, strict=True):
        cut = np.array([float(rollout.stop == "length") for rollout in side])
        distinct = len(set(said)) / len(said)
        found += [
            bootstrap_mean(length, ids).finding(f"length/{name}", "mean tokens of an answer"),
            bootstrap_mean(cut, ids).finding(f"cut/{name}", "share of answers that ended by length"),
            Finding(probe=f"distinct/{name}", value=distinct, n=len(said), message="share of different answers"),
            Finding(probe=f"distinct_2/{name}", value=distinct_pairs(said), n=len(said), message="distinct word pairs"),
        ]
    return found


def distance(
    base: PolicySampler, policy: PolicySampler, sides: Sequence[Sequence[Rollout]], budget: int
) -> list[Finding]:
    """KL of the policy from its base on the policy's answers, and how the base reads both sides' answers."""
    found: list[Finding] = []
    ids = np.array([rollout.prompt.id for rollout in sides[1]])
    under_base = _logprobs(base, sides[1], budget)
    under_policy = _logprobs(policy, sides[1], budget)
    ratio = [p - b for p, b in zip(under_policy, under_base, strict=True)]
    k1 = np.array([float(r.sum()) for r in ratio])
    k3 = np.array([float((torch.expm1(-r) + r).sum()) for r in ratio])
    found.append(bootstrap_mean(k1, ids).finding("kl", "nats an answer, k1 (signed)"))
    found.append(bootstrap_mean(k3, ids).finding("kl_k3", "nats an answer, k3 (never negative)"))
    count = sum(len(r) for r in ratio)
    found.append(Finding(probe="kl_per_token", value=float(k1.sum() / count), n=count, message="nats a token, k1"))
    perplexities = []
    if base.settings.cuts:  # what the base told when it drew them is of the tokens that were left to draw from
        own = _logprobs(base, sides[0], budget)
    else:
        own = [torch.tensor(rollout.sampler_logprobs) for rollout in sides[0]]
    for name, logprobs in (("base", own), ("policy", under_base)):
        tokens = torch.cat(logprobs)
        perplexities.append(math.exp(-float(tokens.mean())))
        found.append(
            Finding(
                probe=f"perplexity/{name}",
                value=perplexities[-1],
                n=len(tokens),
                message="of its answers, under the base",
            )
        )
    share = perplexities[1] / perplexities[0]
    found.append(Finding(probe="perplexity/ratio", value=share, n=len(sides[1]), message="policy's over the base's"))
    return found


def likelihood(base: PolicySampler, policy: PolicySampler, data: DataSettings, budget: int) -> list[Finding]:
    """Negative log-likelihood of plain text before and after: what optimisation cost elsewhere."""
    texts = read(read_texts, data, "text")
    tokenizer = base.encoder.tokenizer
    ids = [tuple(tokenizer(text_of(t.response), add_special_tokens=False)["input_ids"][:TEXT_TOKENS]) for t in texts]
    rows = [Encoded((), row, (True,) * len(row)) for row in ids if len(row) > 1]
    if len(rows) < len(ids):
        say(f"{data.path}: left out {len(ids) - len(rows)} of {len(ids)} texts: a single token follows nothing")
    if not rows:
        raise InputError(f"{data.path}: no text has two tokens or more, so there is no likelihood to tell")
    names = np.array([str(index) for index in range(len(rows))])
    means = [
        np.array([-float(values.mean()) for values in _score(sampler, rows, budget)]) for sampler in (base, policy)
    ]
    return [
        bootstrap_mean(means[0], names).finding("text_nll/base", f"nats a token of plain text, first {TEXT_TOKENS}"),
        bootstrap_mean(means[1], names).finding("text_nll/policy", f"nats a token of plain text, first {TEXT_TOKENS}"),
        paired_bootstrap(means[1], means[0], names).finding("text_nll/change", "policy minus base: the alignment tax"),
    ]


def samples(
    sides: Sequence[Sequence[Rollout]],
    oracle: Sequence[Sequence[float]] | None,
    rewards: Sequence[Sequence[float]] | None,
) -> list[Sample]:
    """Answers side by side."""

    def numbers(values: Sequence[Sequence[float]] | None, side: int, row: int) -> float | None:
        return None if values is None else float(values[side][row])

    return [
        Sample(
            prompt=text_of(before.prompt.messages),
            base=text_of(before.response),
            policy=text_of(after.response),
            base_reward=numbers(rewards, 0, row),
            policy_reward=numbers(rewards, 1, row),
            base_oracle=numbers(oracle, 0, row),
            policy_oracle=numbers(oracle, 1, row),
        )
        for row, (before, after) in enumerate(zip(*sides, strict=True))
    ]


def _logprobs(sampler: PolicySampler, side: Sequence[Rollout], budget: int) -> list[torch.Tensor]:
    """Each answer's token log-probabilities, at the sampling temperature."""
    rows = [Encoded(sampler.encoder.prompt(r.prompt), r.ids, (True,) * len(r.ids)) for r in side]
    return _score(sampler, rows, budget, temperature=sampler.settings.temperature)


def _score(
    sampler: PolicySampler, rows: Sequence[Encoded], budget: int, temperature: float = 1.0
) -> list[torch.Tensor]:
    learner = Learner(sampler.model, token_budget=budget)
    found: list[torch.Tensor] = []
    for first in range(0, len(rows), 64):
        batch = collate([[row] for row in rows[first : first + 64]], sampler.encoder.tokenizer.pad_token_id)
        with tempered(sampler.model, temperature):
            logprobs = learner.forward(batch, ("logprobs",)).logprobs
        found += [values[mask] for values, mask in zip(logprobs, batch.mask, strict=True)]
    return found


def _row(finding: Finding) -> dict[str, Any]:
    interval = "" if finding.interval is None else f"{finding.interval[0]:.3f} to {finding.interval[1]:.3f}"
    return {
        "measure": finding.probe,
        "value": f"{finding.value:.3f}",
        "95% interval": interval,
        "n": finding.n,
        "what": finding.message,
    }
