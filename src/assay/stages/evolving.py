"""A reward model that labels pairs itself and learns from the labels it is sure of (`assay.rewards.ser`)."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from assay.config import DataSettings, RewardConfig
from assay.feedback.read import read_rankings
from assay.feedback.relabel import relabelled
from assay.feedback.split import split_by_prompt
from assay.records import Comparison, Response
from assay.report.run import write_json
from assay.rewards.model import RewardModel
from assay.rewards.ser import Loop, evolve
from assay.stages.common import keep_fitting, read
from assay.stages.fitting import Fitting
from assay.stages.held_out import compared, pairs_of
from assay.stages.judgements import Item, Judgement
from assay.stages.progress import say
from assay.stages.scoring import score_pairs
from assay.tokens.chat import Encoded


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """Pairs without labels, in the order they were shown; `better` holds the better answer by id, where it is known."""

    parts: tuple[tuple[Sequence[Comparison], DataSettings, str], ...]  # with the settings they were read by, by flag
    better: dict[str, Response]

    def __bool__(self) -> bool:
        return bool(self.parts)


def find_pool(train: tuple[Judgement, ...], config: RewardConfig) -> tuple[tuple[Judgement, ...], Pool]:
    """What is learned from as people labelled it, and the pairs that the model labels itself."""
    parts: list[tuple[Sequence[Comparison], DataSettings, str]] = []
    better: dict[str, Response] = {}
    if config.labelled < 1:
        train, rest = split_by_prompt(train, held_out=1 - config.labelled, seed=config.seed + 2)
        clear = [c for c in rest if isinstance(c, Comparison) and c.preference != 0.5]
        if len(clear) < len(rest):
            say(f"{len(rest) - len(clear)} ties are left out of the pool")
        parts.append(([relabelled(c, 1.0) for c in clear], config.data, "data"))
        better |= {c.id: c.chosen for c in clear}
    if config.unlabelled.path:
        pairs = [
            Comparison(prompt=ranking.prompt, responses=two, source=ranking.source)
            for ranking in read(read_rankings, config.unlabelled, "unlabelled")
            for two in itertools.combinations(ranking.responses, 2)
        ]
        parts.append((pairs, config.unlabelled, "unlabelled"))
    return train, Pool(tuple(part for part in parts if part[0]), better)


def label_itself(
    fitting: Fitting, seed: Sequence[Item], pool: Pool, tested: Sequence[Item], anew: Callable[[], RewardModel]
) -> RewardModel:
    """Loops of labelling, choosing and refitting, from the model fitted to the seed; each is told and kept."""

    def encoded(pair: Comparison) -> list[Encoded]:
        return [fitting.reward.encode((pair.prompt, response)) for response in pair.responses]

    limit = min(fitting.reward.context, fitting.config.max_tokens or fitting.reward.context)
    items = [item for pairs, data, flag in pool.parts for item in keep_fitting(pairs, encoded, limit, data, flag)]
    judged = bool(pool.better) and not fitting.config.unlabelled.path  # whether the truth is known of every pair
    kept: list[dict[str, object]] = [{"loop": 0, **_accuracy(fitting.reward, tested)}]

    def fit(model: RewardModel | None, chosen: Sequence[Item]) -> RewardModel:
        model = model or anew()
        model.learner.restart()
        dataclasses.replace(fitting, reward=model).fit(list(chosen), name=f"reward-loop-{len(kept)}")
        return model

    def right(item: Item) -> bool:
        judgement, _ = item
        return isinstance(judgement, Comparison) and judgement.responses[0] == pool.better[judgement.id]

    def report(loop: Loop, model: RewardModel) -> None:
        kept.append({"loop": loop.index, **dataclasses.asdict(loop), **_accuracy(model, tested)})
        known = f", {loop.precision:.1%} of the labels right ({loop.whole:.1%} over the pool)" if judged else ""
        say(f"loop {loop.index}: {loop.num} of {loop.pool} pairs by {loop.status}{known}")

    evolved = evolve(
        fitting.reward,
        list(seed),
        items,
        fitting.config.ser,
        score=_rewards,
        fit=fit,
        swap=_swap,
        right=right if judged else None,
        report=report,
    )
    say(f"no further loop: {evolved.stopped}")
    write_json(fitting.place.path / "ser.json", {"loops": kept, "stopped": evolved.stopped})
    return evolved.model


def _rewards(model: RewardModel, items: Sequence[Item]) -> Tensor:
    """[N, 2] both rewards of each pair."""
    return torch.tensor(model.score_encoded([e for _, conversations in items for e in conversations])).view(-1, 2)


def _swap(item: Item) -> Item:
    judgement, encoded = item
    assert isinstance(judgement, Comparison)
    first, second = judgement.responses
    return dataclasses.replace(judgement, responses=(second, first)), encoded[::-1]


def _accuracy(model: RewardModel, tested: Sequence[Item]) -> dict[str, object]:
    if not tested:
        return {}
    found = compared(score_pairs(model, pairs_of(tested)), means_odds=False)["held-out accuracy"]
    return {"accuracy": found.value, "interval": found.interval, "n": found.n}
