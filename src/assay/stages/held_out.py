"""What a reward model gets right on feedback that it was not trained on, kind by kind."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from assay.audit.calibration import expected_calibration_error, negative_log_likelihood, random_order
from assay.audit.statistics import Estimate, bootstrap_mean, cluster_bootstrap, proportion, roc_area, spearman
from assay.audit.table import ScoredPairs
from assay.records import Comparison, Ranking, Rating
from assay.report.run import RunDirectory, write_json
from assay.rewards.likelihoods import Likelihood
from assay.rewards.likelihoods.dense import Outcome
from assay.rewards.likelihoods.ratings import Binary, Regression
from assay.rewards.model import Reward, RewardModel
from assay.stages.judgements import Item, collator
from assay.stages.progress import say
from assay.stages.scoring import of_objective, score_pairs
from assay.tokens.chat import Encoded

MIN_CALIBRATION = 40  # pairs


def summarise(
    reward: Reward,
    likelihood: Likelihood,
    items: Sequence[Item],
    place: RunDirectory,
    told: Mapping[str, Mapping[str, float]],
) -> None:
    """Print and keep the held-out figures, each with its 95% interval; `told` is what was learned of annotators."""
    if likelihood.data == "ratings":
        found, num = rated(reward, likelihood, items), len(items)
    elif likelihood.data in ("steps", "spans"):
        found, num = placed(reward, likelihood, items), len(items)
    else:
        scored = score_pairs(reward, pairs_of(items))
        means_odds = likelihood.innermost.gives_log_odds or likelihood.data == "rankings" or bool(told)
        found, num = compared(scored, means_odds=means_odds), len(scored)
        if told:
            found |= told_apart(reward, likelihood, items, told, scored)
    for name, figure in found.items():
        say(f"{name}: {figure.told()}")
    facts = {name: {"value": figure.value, "interval": figure.interval} for name, figure in found.items()}
    write_json(place.path / "held_out.json", {"n": num, **facts})


def told_apart(
    reward: Reward,
    likelihood: Likelihood,
    items: Sequence[Item],
    told: Mapping[str, Mapping[str, float]],
    scored: ScoredPairs,
) -> dict[str, Estimate]:
    """The figures for the very people who judged."""
    pairs = pairs_of(items)
    outputs = reward.outputs_encoded([encoded for _, two in pairs for encoded in two])
    comparisons = [comparison for comparison, _ in pairs]
    rewards = of_objective(reward, outputs, [c.objective for c in comparisons for _ in range(2)])
    found = likelihood.log_odds(outputs, rewards, comparisons, told)
    assert found is not None
    odds = found.double().numpy()
    right, clear = (odds > 0) + 0.5 * (odds == 0), scored.labelled
    losses = negative_log_likelihood(odds, scored.preference)
    return {
        "held-out accuracy, annotators told apart": proportion(right[clear], scored.prompt_id[clear]),
        "negative log-likelihood, annotators told apart": bootstrap_mean(losses, scored.prompt_id),
    }


def pairs_of(items: Sequence[Item]) -> list[tuple[Comparison, Sequence[Encoded]]]:
    """Comparisons as they are, rankings as all their pairs."""
    found: list[tuple[Comparison, Sequence[Encoded]]] = []
    for judgement, encoded in items:
        if isinstance(judgement, Comparison):
            found.append((judgement, encoded))
        elif isinstance(judgement, Ranking):
            found += [(judgement.comparison(i, j), [encoded[i], encoded[j]]) for i, j in judgement.untied()]
    return found


def compared(scored: ScoredPairs, *, means_odds: bool) -> dict[str, Estimate]:
    """Accuracy beside what length alone would reach; loss and calibration error; accuracy by objective.

    Loss and calibration are of sigmoid(difference of rewards): left out where a difference is not meant as log-odds.
    """
    clear = scored.select(scored.labelled)
    longer = (clear.length_difference > 0) + 0.5 * (clear.length_difference == 0)
    found = {
        "held-out accuracy": proportion(clear.correct, clear.prompt_id),
        "always the longer": proportion(longer, clear.prompt_id),
    }
    if means_odds:
        losses = negative_log_likelihood(scored.reward_difference, scored.preference)
        found["negative log-likelihood"] = bootstrap_mean(losses, scored.prompt_id)
    if means_odds and len(scored) >= MIN_CALIBRATION:
        difference, outcome = random_order(scored.reward_difference, scored.preference)
        probability = expit(difference)
        found["expected calibration error"] = cluster_bootstrap(
            lambda weights: expected_calibration_error(probability, outcome, weights=weights), scored.prompt_id
        )
    subsets = sorted(set(clear.subset.tolist()))
    if 1 < len(subsets) <= 10:
        for subset in subsets:
            here = clear.subset == subset
            found[f"held-out accuracy, {subset}"] = proportion(clear.correct[here], clear.prompt_id[here])
    return found


def rated(reward: Reward, likelihood: Likelihood, items: Sequence[Item]) -> dict[str, Estimate]:
    """How rewards and ratings go together; for good or bad, accuracy beside the more frequent class."""
    ratings = [judgement for judgement, _ in items if isinstance(judgement, Rating)]
    prompts = np.array([r.prompt.id for r in ratings])
    outputs = reward.outputs_encoded([encoded[0] for _, encoded in items])
    rewards = np.array(of_objective(reward, outputs, [r.objective for r in ratings]).tolist())
    values = np.array([r.value for r in ratings])
    found: dict[str, Any] = {"rank correlation with the ratings": spearman(rewards, values, prompts)}
    kind = likelihood.innermost
    if isinstance(kind, Regression):
        found["mean squared error"] = bootstrap_mean((rewards - values) ** 2, prompts)
        found["of always the mean"] = bootstrap_mean((values - values.mean()) ** 2, prompts)
    if isinstance(kind, Binary | Outcome):
        middle = 0.0 if isinstance(kind, Binary) else 0.5  # a logit, or a probability
        found["held-out accuracy"] = proportion(((rewards > middle) == (values > 0.5)).astype(float), prompts)
        found["always the more frequent"] = _usual(values > 0.5, prompts)
    return found


def placed(reward: Reward, likelihood: Likelihood, items: Sequence[Item]) -> dict[str, Estimate]:
    """Steps told right from wrong, and the first wrong one found; spans of each kind told from other tokens."""
    assert isinstance(reward, RewardModel)  # no ensemble reads at tokens
    numbers = reward.token_numbers([encoded for _, (encoded,) in items])
    batch = collator(reward.encoder, likelihood)(list(items))
    rows, tokens = (part.numpy() for part in batch.mask.nonzero(as_tuple=True))
    prompts = np.array([judgement.prompt.id for judgement, _ in items])[rows]
    logits = np.stack([numbers[row][token].numpy() for row, token in zip(rows, tokens, strict=True)])
    if likelihood.data == "spans":
        labels = batch.span.numpy()[rows, tokens] > 0.5
        return {
            f"area under the ROC, {kind}": roc_area(logits[:, place], labels[:, place], prompts)
            for place, kind in enumerate(reward.readout.names)
            if labels[:, place].any()
        }
    labels, told = batch.step_label.numpy()[rows, tokens] > 0.5, logits[:, 0] > 0
    found = {
        "held-out accuracy of steps": proportion((told == labels).astype(float), prompts),
        "always the more frequent": _usual(labels, prompts),
    }
    wrong = [row for row in np.unique(rows) if not labels[rows == row].all()]
    if wrong:
        first = [float(_first_wrong(told[rows == row]) == _first_wrong(labels[rows == row])) for row in wrong]
        found["first wrong step found"] = proportion(first, [items[row][0].prompt.id for row in wrong])
    return found


def _first_wrong(right: Any) -> int:
    """The first step that is not right; one past the last where all are."""
    return int(np.append(~right, True).argmax())


def _usual(labels: Any, prompts: Any) -> Estimate:
    """What always saying the more frequent would get right."""
    return proportion((labels == (labels.mean() >= 0.5)).astype(float), prompts)
