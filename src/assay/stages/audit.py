"""assay audit: a reward model under test, before anything is optimised against it."""

from dataclasses import replace

import numpy as np
import torch

from assay.audit.run import Audit, audit_pairs
from assay.audit.table import ScoredSamples
from assay.config import AuditConfig, SamplesSettings
from assay.config_files import plain
from assay.feedback.oracles import Oracle
from assay.feedback.read import read_comparisons, read_prompts
from assay.feedback.split import prompt_key
from assay.records import text_of
from assay.rewards.model import Reward
from assay.stages.common import hash_of_rewards, load_oracle, load_rewards, open_run, read
from assay.stages.held_out import pairs_of
from assay.stages.judgements import encode
from assay.stages.progress import say, table
from assay.stages.sampling import PolicySampler
from assay.stages.scoring import score_pairs


def run(config: AuditConfig) -> Audit:
    """Score, probe, judge; `audit.json` and the scored tables go to the run directory."""
    place = open_run(config.run)
    data = config.data if config.data.path else replace(config.data, path=str(place.path / "held_out.jsonl"))
    comparisons = read(read_comparisons, data)
    told = {"dtype": config.dtype, "token_budget": config.token_budget}
    oracle = load_oracle(config.samples.oracle, **told) if config.samples.oracle else None
    named = config.reward or str(place.reward)
    reward = load_rewards(named, config)
    pairs = score_pairs(reward, pairs_of(encode(comparisons, reward.encode, reward.context, data)))
    samples = score_samples(reward, config.samples, config, oracle) if config.samples.prompts.path else None
    found = audit_pairs(pairs, samples, config.gate, seed=config.seed)
    place.path.mkdir(parents=True, exist_ok=True)
    place.write_config(plain(config), "audit")
    pairs.save(place.path / "scored_pairs.parquet")
    if samples is not None:
        samples.save(place.path / "scored_samples.parquet")
    found.save(place.audit)
    weights = hash_of_rewards(named, config)
    place.record("audit", reward=named, weights=weights, seed=config.seed, counts=dict(found.counts))
    table("audit", found.table())
    if found.verdict.passed:
        say("the gate is open: this reward may be optimised against")
    for reason in found.verdict.reasons:
        say(f"refused: {reason}")
    return found


def score_samples(
    reward: Reward, settings: SamplesSettings, config: AuditConfig, oracle: Oracle | None
) -> ScoredSamples:
    """Several answers to each prompt, with reward and, where it is known, the truth."""
    prompts = read(read_prompts, settings.prompts, "samples.prompts")[: settings.num_prompts]
    sampler = PolicySampler.load(settings.model, settings.sampling, dtype=config.dtype)
    prompts = sampler.fitting(prompts, settings.prompts, "samples.prompts")
    generator = torch.Generator().manual_seed(config.seed)
    rollouts = sampler.sample(prompts, settings.num_answers, generator)
    rewards = reward.score([(rollout.prompt, rollout.response) for rollout in rollouts])
    columns = {}
    if oracle is not None:
        columns["oracle"] = np.array(oracle([r.prompt for r in rollouts], [r.response for r in rollouts]))
    keys = [prompt_key(rollout.prompt) for rollout in rollouts]  # not ids, which the data may give to several
    return ScoredSamples(
        prompt_id=np.array(keys),
        reward=np.array(rewards),
        length=np.array([len(text_of(rollout.response)) for rollout in rollouts]),
        text=np.array([text_of(rollout.response) for rollout in rollouts]),
        **columns,
    )
