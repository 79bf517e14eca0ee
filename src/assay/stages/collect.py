"""assay collect: pairs of sampled answers labelled by a simulated annotator, or feedback imported from elsewhere."""

import torch

from assay.config import CollectConfig, plain
from assay.feedback.annotators import SimulatedAnnotator
from assay.feedback.read import read_comparisons, read_prompts
from assay.feedback.write import write_records
from assay.records import Comparison, text_of
from assay.settings import InputError
from assay.stages.common import load_oracle, open_run, read
from assay.stages.progress import say
from assay.stages.sampling import PolicySampler


def run(config: CollectConfig) -> tuple[Comparison, ...]:
    """Comparisons into the run's `feedback.jsonl`."""
    place = open_run(config.run)
    found = import_feedback(config) if config.feedback.path else simulate(config)
    place.path.mkdir(parents=True, exist_ok=True)
    place.write_config(plain(config), "collect")
    write_records(place.feedback, found)
    place.record("collect", num_comparisons=len(found), seed=config.seed)
    say(f"{len(found)} comparisons: {place.feedback}")
    return found


def import_feedback(config: CollectConfig) -> tuple[Comparison, ...]:
    """Comparisons in any of the field's formats."""
    return read(read_comparisons, config.feedback, "feedback")


def simulate(config: CollectConfig) -> tuple[Comparison, ...]:
    """Answers to each prompt, paired off in the order they were sampled, and judged. Identical pairs are left out."""
    if config.num_answers % 2:
        raise InputError(f"--num_answers {config.num_answers}: answers are judged in pairs, give an even number")
    oracle = load_oracle(config.oracle)
    prompts = read(read_prompts, config.prompts, "prompts")[: config.num_prompts]
    sampler = PolicySampler.load(config.model, config.sampling, dtype=config.dtype)
    prompts = sampler.fitting(prompts, config.prompts, "prompts")
    rollouts = sampler.sample(prompts, config.num_answers, torch.Generator().manual_seed(config.seed))
    pairs = [(a.prompt, a.response, b.response) for a, b in zip(rollouts[0::2], rollouts[1::2], strict=True)]
    usable = [pair for pair in pairs if text_of(pair[1]).strip() and text_of(pair[2]).strip() and pair[1] != pair[2]]
    if len(usable) < len(pairs):
        say(f"left out {len(pairs) - len(usable)} of {len(pairs)} pairs with identical or empty answers")
    annotator = SimulatedAnnotator(oracle=oracle, temperature=config.temperature, seed=config.seed, name=config.oracle)
    return annotator.label(usable)
