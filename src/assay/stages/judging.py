"""Pairs labelled by a language model that judges, and how far such a judge agrees with itself."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import torch
from torch import Tensor

from assay.audit.statistics import bootstrap_mean, proportion
from assay.config import CollectConfig, DataSettings
from assay.feedback.relabel import numbered, relabelled
from assay.records import Comparison, Finding
from assay.rewards.judge import Judge, Judgement, LanguageModel, open_judge, opinions
from assay.rewards.principles import Principle
from assay.rewards.salmon import DISCLAIMER, build_preferences
from assay.settings import InputError
from assay.stages.common import all_finite, keep_fitting
from assay.stages.progress import bar, say
from assay.tokens.chat import Encoded

PAIRS_AT_ONCE = 64


def label(
    config: CollectConfig,
    pairs: Sequence[Comparison],
    data: DataSettings,
    flag: str,
    principles: Sequence[Principle] = (),
) -> tuple[tuple[Comparison, ...], list[Finding]]:
    """The pairs with the judge's preferences in place of theirs, and how far its two orders agree, printed too.

    With principles it is asked by each of them, and pairs are labelled under drawn sets (`assay.rewards.salmon`).
    """
    if not pairs:
        raise InputError("there is no pair to judge")
    if plain := [pair for pair in pairs if principles and pair.responses[0][0].role == "text"]:
        raise InputError(
            f"{data.path}: {len(plain)} of {len(pairs)} pairs are plain text (the first: {plain[0].id}), and "
            f"principles are told in a message after the answer: give prompts and answers as messages"
        )
    longest = max((p.text for p in principles), key=len, default=config.criterion)
    judge = open_judge(config.judge, criterion=longest, dtype=config.dtype, token_budget=config.token_budget)
    if isinstance(model := judge.model, LanguageModel):

        def asked(pair: Comparison) -> tuple[Encoded, Encoded]:
            return model.encode(judge.question(pair.prompt, *pair.responses))

        pairs = [pair for pair, _ in keep_fitting(pairs, asked, model.context, data, flag)]
    judgements = opinions_of(judge, pairs, [p.text for p in principles] or [judge.criterion])
    found = consistency(judgements, [p.name for p in principles] or [judge.name], pairs)
    for finding in found:
        say(f"{finding.probe}: {finding.value:.3f}  {finding.message}, n = {finding.n}")
    if judge.model.num_unread:
        asked_for = 2 * len(pairs) * max(1, len(principles))
        say(f"{judge.model.num_unread} of {asked_for} replies had neither letter and count as no opinion")
    if not principles:
        return labelled(judge, pairs, Judgement(judgements[:, 0, 0], judgements[:, 0, 1])), found
    rng = Random(config.seed)
    made = build_preferences(pairs, judgements, principles, config.aggregation, rules=(DISCLAIMER,), rng=rng)
    if not made:
        raise InputError(f"{judge.name} has no opinion that both orders share: nothing can be learned from it")
    return tuple(replace(c, annotator=judge.name, source="judge") for c in made), found


def opinions_of(judge: Judge, pairs: Sequence[Comparison], criteria: Sequence[str]) -> Tensor:
    """[N, K, 2] the judge's log-odds in both orders by each criterion, with a bar."""
    found: list[Tensor] = []
    with bar("judging", len(pairs)) as progress:
        for first in range(0, len(pairs), PAIRS_AT_ONCE):
            asked = pairs[first : first + PAIRS_AT_ONCE]
            found.append(opinions(judge, asked, criteria))
            all_finite(found[-1].sum((1, 2)).tolist(), [pair.id for pair in asked], f"the judge {judge.name}")
            progress.update(min(first + PAIRS_AT_ONCE, len(pairs)), {})
    return torch.cat(found)


def labelled(judge: Judge, pairs: Sequence[Comparison], judgement: Judgement) -> tuple[Comparison, ...]:
    """Comparisons with preference sigmoid(log-odds); `meta` keeps the log-odds of either order."""
    made = [
        relabelled(
            pair,
            0.5 * (1 + math.tanh(log_odds / 2)),
            meta={"judge_log_odds": parts, "criterion": judge.criterion},
            id="",
            annotator=judge.name,
            source="judge",
        )
        for pair, log_odds, parts in zip(pairs, judgement.log_odds.tolist(), judgement.both.tolist(), strict=True)
    ]
    return tuple(numbered(made))


def consistency(judgements: Tensor, names: Sequence[str], pairs: Sequence[Comparison]) -> list[Finding]:
    """Of judgements [N, K, 2], both orders of N pairs under K names: two findings a name.

    The share of pairs whose two orders name the same winner, with Wilson's interval, wider where prompts repeat; half
    is what a judge without opinion reaches. And the mean log-odds of being shown first, with a bootstrap's.
    """
    prompts = [pair.prompt.id for pair in pairs]
    found: list[Finding] = []
    for place, name in enumerate(names):
        judgement = Judgement(judgements[:, place, 0], judgements[:, place, 1])
        agrees, bias = judgement.agrees.numpy().astype(float), judgement.bias.numpy().astype(float)
        found += [
            _told(proportion(agrees, prompts).finding(f"order_agreement/{name}", "share of pairs")),
            _told(bootstrap_mean(np.asarray(bias), prompts).finding(f"order_bias/{name}", "log-odds for being first")),
        ]
    return found


def _told(finding: Finding) -> Finding:
    """With its interval in words."""
    if finding.interval is None:
        return replace(finding, message=f"{finding.message}, too few for an interval")
    low, high = finding.interval
    return replace(finding, message=f"{finding.message}, 95% interval {low:.3f} to {high:.3f}")
