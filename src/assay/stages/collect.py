"""assay collect: pairs of sampled answers, or feedback imported from elsewhere, and who labels them.

A simulated annotator labels sampled pairs; a language model as judge labels sampled and imported ones.
"""

from dataclasses import replace
from typing import Any

import torch

from assay.config import CollectConfig
from assay.config_files import plain
from assay.feedback.annotators import Pair, SimulatedAnnotator
from assay.feedback.read import read_comparisons, read_prompts
from assay.feedback.write import write_records
from assay.records import Comparison, text_of
from assay.rewards.judge import check_judge
from assay.rewards.principles import read_principles
from assay.settings import InputError
from assay.stages.common import load_oracle, open_run, read
from assay.stages.judging import label
from assay.stages.progress import say
from assay.stages.sampling import PolicySampler


def run(config: CollectConfig) -> tuple[Comparison, ...]:
    """Comparisons into the run's `feedback.jsonl`."""
    place = open_run(config.run)
    if config.criterion and not config.judge:
        raise InputError("--criterion is what a judge goes by: name one with --judge, or leave it out")
    if config.principles and (config.criterion or not config.judge):
        raise InputError("--principles: a judge is asked by each of them; name one with --judge, and no --criterion")
    found, facts = judged(config) if config.judge else (collected(config), {})
    place.path.mkdir(parents=True, exist_ok=True)
    place.write_config(plain(config), "collect")
    write_records(place.feedback, found)
    place.record("collect", num_comparisons=len(found), seed=config.seed, **facts)
    say(f"{len(found)} comparisons: {place.feedback}")
    return found


def collected(config: CollectConfig) -> tuple[Comparison, ...]:
    """Imported labels, or those of the simulated annotator."""
    if config.feedback.path:
        return import_feedback(config)
    oracle = load_oracle(config.oracle, dtype=config.dtype, token_budget=config.token_budget)
    annotator = SimulatedAnnotator(oracle=oracle, temperature=config.temperature, seed=config.seed, name=config.oracle)
    return annotator.label(sample_pairs(config))


def judged(config: CollectConfig) -> tuple[tuple[Comparison, ...], dict[str, Any]]:
    """Imported or sampled pairs as the judge labels them, and what is to be noted of it.

    An imported label stays in `meta`, as "imported_preference" of the first answer and "imported_annotator".
    """
    check_judge(config.judge)  # an error here, not after everything is sampled
    principles = read_principles(config.principles) if config.principles else ()
    if config.feedback.path:
        pairs = [_with_old_label(pair) for pair in import_feedback(config)]
        data, flag = config.feedback, "feedback"
    else:
        pairs = [Comparison(prompt=prompt, responses=(a, b)) for prompt, a, b in sample_pairs(config)]
        data, flag = config.prompts, "prompts"
    found, findings = label(config, pairs, data, flag, principles)
    return found, {"judge": config.judge, "findings": [finding.to_json() for finding in findings]}


def _with_old_label(pair: Comparison) -> Comparison:
    told = {"imported_preference": pair.preference, "imported_annotator": pair.annotator}
    return replace(pair, meta={**pair.meta, **told})


def import_feedback(config: CollectConfig) -> tuple[Comparison, ...]:
    """Comparisons in any of the field's formats."""
    return read(read_comparisons, config.feedback, "feedback")


def sample_pairs(config: CollectConfig) -> list[Pair]:
    """Answers to each prompt, paired off in the order they were sampled. Identical pairs are left out."""
    if config.num_answers % 2:
        raise InputError(f"--num_answers {config.num_answers}: answers are judged in pairs, give an even number")
    prompts = read(read_prompts, config.prompts, "prompts")[: config.num_prompts]
    sampler = PolicySampler.load(config.model, config.sampling, dtype=config.dtype)
    prompts = sampler.fitting(prompts, config.prompts, "prompts")
    rollouts = sampler.sample(prompts, config.num_answers, torch.Generator().manual_seed(config.seed))
    pairs = [(a.prompt, a.response, b.response) for a, b in zip(rollouts[0::2], rollouts[1::2], strict=True)]
    usable = [pair for pair in pairs if text_of(pair[1]).strip() and text_of(pair[2]).strip() and pair[1] != pair[2]]
    if len(usable) < len(pairs):
        say(f"left out {len(pairs) - len(usable)} of {len(pairs)} pairs with identical or empty answers")
    if not usable:
        raise InputError(
            "every pair of answers is identical or has an empty one: sample more --num_answers, or at a higher "
            "--sampling.temperature, without --sampling.top_k 1"
        )
    return usable
