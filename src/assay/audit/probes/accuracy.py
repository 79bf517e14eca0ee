"""How often the reward agrees with the label, overall and by subset, beside what length alone would reach."""

import math

import numpy as np

from assay.audit.statistics import mcnemar, minimum_detectable_difference, paired_bootstrap, proportion
from assay.audit.table import FloatArray, ScoredPairs
from assay.records import Finding


def accuracy(pairs: ScoredPairs, *, seed: int = 0) -> list[Finding]:
    """Held-out accuracy and the baselines it must beat. Pairs whose label is a tie are left out (see `rates`).

    Equal rewards count 1/2, missing rewards 0. Intervals are Wilson's, widened where prompts repeat.
    """
    pairs = pairs.select(pairs.labelled)
    correct, prompts = pairs.correct, pairs.prompt_id
    failed = int(pairs.failed.sum())
    note = f"; {failed} pairs with a missing reward count as wrong" if failed else ""
    found = proportion(correct, prompts)
    what = (
        f"the reward prefers the chosen answer in {found.value:.1%} of pairs{note}" if found.n else "no labelled pairs"
    )
    findings = [found.finding("accuracy", what)]
    subsets = sorted(set(pairs.subset) - {""})
    for subset in subsets:
        here = pairs.subset == subset
        part = proportion(correct[here], prompts[here])
        findings.append(part.finding(f"accuracy/{subset}", f"{part.value:.1%} of the pairs of {subset}"))
    return findings + _baselines(pairs, correct, seed)


def _baselines(pairs: ScoredPairs, correct: FloatArray, seed: int) -> list[Finding]:
    longer = np.where(pairs.length_difference > 0, 1.0, np.where(pairs.length_difference == 0, 0.5, 0.0))
    rules = {"longer": longer, "shorter": 1 - longer}
    findings = []
    for name, right in rules.items():
        found = proportion(right, pairs.prompt_id)
        findings.append(found.finding(f"baseline/{name}", f"always preferring the {name} answer is right this often"))
    if not len(pairs):
        return findings
    name, right = max(rules.items(), key=lambda rule: rule[1].mean())
    majority = proportion(right, pairs.prompt_id)
    gain = paired_bootstrap(correct, right, pairs.prompt_id, seed=seed)
    clear = (correct != 0.5) & (right != 0.5)  # half a credit is neither right nor wrong
    test = mcnemar(correct[clear] == 1, right[clear] == 1)
    smallest = minimum_detectable_difference(len(pairs), (test.only_first + test.only_second) / len(pairs))
    power = f"{smallest:.1%} or more" if math.isfinite(smallest) else "no difference: they are too few"
    return [
        *findings,
        majority.finding("baseline/majority", f"the length rule that most labels follow: the {name} answer"),
        gain.finding(
            "baseline/gain",
            f"accuracy above that rule (McNemar p = {test.pvalue:.2g}; these pairs can show {power})",
        ),
    ]
