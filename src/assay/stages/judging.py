"""Pairs labelled by a language model that judges, and how far such a judge agrees with itself."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from assay.audit.statistics import bootstrap_mean, proportion
from assay.config import CollectConfig, DataSettings
from assay.records import Comparison, Finding
from assay.rewards.judge import Judge, Judgement, LanguageModel, open_judge, opinions
from assay.rewards.principles import Principle
from assay.settings import InputError
from assay.stages.common import keep_fitting
from assay.stages.progress import bar, say

PAIRS_AT_ONCE = 64


def label(
    config: CollectConfig, pairs: Sequence[Comparison], data: DataSettings, flag: str
) -> tuple[tuple[Comparison, ...], list[Finding]]:
    """The pairs with the judge's preferences in place of theirs, and how far its two orders agree, printed too."""
    if not pairs:
        raise InputError("there is no pair to judge")
    judge = open_judge(config.judge, criterion=config.criterion, dtype=config.dtype, token_budget=config.token_budget)
    if isinstance(judge.model, LanguageModel):
        asked = ((pair, judge.model.encode(judge.question(pair.prompt, *pair.responses))) for pair in pairs)
        pairs = [pair for pair, _ in keep_fitting(asked, judge.model.context, data, flag)]
    judgement = compare(judge, pairs)
    found = consistency(judgement.both[:, None], [judge.name], pairs)
    for finding in found:
        say(f"{finding.probe}: {finding.value:.3f}  {finding.message}, n = {finding.n}")
    if judge.model.num_unread:
        say(f"{judge.model.num_unread} of {2 * len(pairs)} replies had neither letter and count as no opinion")
    return labelled(judge, pairs, judgement), found


def compare(judge: Judge, pairs: Sequence[Comparison]) -> Judgement:
    """The judge's opinion of each pair, with a bar."""
    found: list[Judgement] = []
    with bar("judging", len(pairs)) as progress:
        for first in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[first : first + PAIRS_AT_ONCE]
            firsts, seconds = zip(*(pair.responses for pair in part), strict=True)
            found.append(judge.compare([pair.prompt for pair in part], firsts, seconds))
            progress.update(first + len(part), {})
    return Judgement(torch.cat([part.d12 for part in found]), torch.cat([part.d21 for part in found]))


def labelled(judge: Judge, pairs: Sequence[Comparison], judgement: Judgement) -> tuple[Comparison, ...]:
    """Comparisons with preference sigmoid(log-odds); `meta` keeps the log-odds of either order."""
    return tuple(
        replace(
            pair,
            id="",
            preference=0.5 * (1 + math.tanh(log_odds / 2)),
            annotator=judge.name,
            source="judge",
            meta={**pair.meta, "judge_log_odds": parts, "criterion": judge.criterion},
        )
        for pair, log_odds, parts in zip(pairs, judgement.log_odds.tolist(), judgement.both.tolist(), strict=True)
    )


def principle_consistency(judge: Judge, pairs: Sequence[Comparison], principles: Sequence[Principle]) -> list[Finding]:
    """How far the judge agrees with itself under each principle: what to look at before its labels are used."""
    return consistency(opinions(judge, pairs, principles), [principle.name for principle in principles], pairs)


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
    low, high = finding.interval or (math.nan, math.nan)
    return replace(finding, message=f"{finding.message}, 95% interval {low:.3f} to {high:.3f}")
