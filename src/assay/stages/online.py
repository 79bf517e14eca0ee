"""Batches that a policy makes itself: sample, score, hand to the algorithm."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from assay.batch import TokenBatch
from assay.config import PolicyConfig
from assay.engine.learner import Learner
from assay.engine.samples import Drawing
from assay.feedback.oracles import Oracle
from assay.losses.credit import at_last_token
from assay.records import Prompt, Rollout, text_of
from assay.rewards.instructed import Instructed
from assay.settings import InputError
from assay.stages.common import data_columns, distinct_pairs
from assay.stages.progress import say
from assay.stages.rewarding import Dense, Rewards, Scored
from assay.stages.sampling import ANSWERS_AT_ONCE, Drawn, PolicySampler
from assay.stages.turns import Episodes
from assay.train.batches import Shuffled

MOST_ROUNDS = 4  # of sampling for one batch


class Rollouts:
    """Prompts in a seeded order, several answers to each, scored."""

    def __init__(
        self,
        sampler: PolicySampler,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        config: PolicyConfig,
        learners: Mapping[str, Learner] | None = None,
        dense: Dense | None = None,
        episodes: Episodes | None = None,
    ) -> None:
        """`learners` draw what the algorithm wants beside the policy's answers; `dense` pays tokens; `episodes` play
        conversations of several turns in place of single answers."""
        self.sampler, self.rewards, self.config, self.dense = sampler, rewards, config, dense
        self.learners, self.episodes = learners or {}, episodes
        self.prompts = Shuffled(prompts, config.batch_size, seed=config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.facts: dict[str, float] = {}

    def next(self) -> dict[str, TokenBatch]:
        """As `Batches`; what was sampled is summed up in `facts`."""
        began = time.perf_counter()
        dynamic = getattr(self.config.algorithm, "dynamic_sampling", False)
        drawn, scored = self._filled(*self._scored()) if dynamic else self._some()
        if not drawn.prompts:
            raise InputError(
                f"the rewards of every prompt of {MOST_ROUNDS} batches could not be had: there is nothing to learn "
                f"from. The last reason: {self.rewards.why}"
            )
        batch = self._finished(drawn, scored)
        self.facts |= {"seconds_rollouts": time.perf_counter() - began}
        columns = self.config.algorithm.columns
        per_answer = [rollout.prompt for rollout in drawn.rollouts]
        return {"main": batch.fill(declared=columns, **data_columns(per_answer, columns))}

    def _some(self) -> tuple[Drawn, Scored]:
        """Answers that have rewards: a batch of which no prompt's could be had is passed over, up to `MOST_ROUNDS`."""
        drawn, scored = self._scored()
        rounds = 1
        while not drawn.prompts and rounds < MOST_ROUNDS:
            lost = self.facts["prompts_without_rewards"]
            drawn, scored = self._scored()
            self.facts["prompts_without_rewards"] = lost + self.facts.get("prompts_without_rewards", 0.0)
            rounds += 1
        return drawn, scored

    def _scored(self) -> tuple[Drawn, Scored]:
        """Answers to the next prompts, and their rewards."""
        began = time.perf_counter()
        prompts, algorithm = self.prompts.next(), self.config.algorithm
        parts = [self._own(prompts)]
        for name in getattr(algorithm, "draws", ()):
            parts.append(self._beside(name, prompts))
        drawn = Drawn.joined(parts)
        sampled = time.perf_counter()
        scored = self._paid(drawn, self._played(drawn, self.rewards(drawn.rollouts, drawn.num)))
        if self.dense is not None:
            scored = self.rewards.with_tokens(scored, self.dense, drawn.rollouts, drawn.num)
        self.facts = {"seconds_sampling": sampled - began, "seconds_scoring": time.perf_counter() - sampled}
        return self._without_failed(drawn, scored)

    def _played(self, drawn: Drawn, scored: Scored) -> Scored:
        """A prompt has failed too where an environment broke off one of its conversations."""
        for why in filter(None, drawn.failed):
            self.rewards.note(why)
        wrong = {row // drawn.num for row, why in enumerate(drawn.failed) if why}
        return replace(scored, failed=[was or row // drawn.num in wrong for row, was in enumerate(scored.failed)])

    def _paid(self, drawn: Drawn, scored: Scored) -> Scored:
        """The totals with what an environment paid, less the penalty of answers that were cut."""
        totals = torch.tensor(scored.totals, dtype=torch.float64)
        if self.episodes is not None:
            totals = totals + drawn.samples.columns["token_rewards"].sum(1)
        if self.config.cut_answers == "penalty":
            totals = totals - self.config.cut_penalty * torch.tensor([r.stop == "length" for r in drawn.rollouts])
        return replace(scored, totals=totals.tolist())

    def _without_failed(self, drawn: Drawn, scored: Scored) -> tuple[Drawn, Scored]:
        """The prompts whose rewards could be had; what could not be judged says nothing of the others either."""
        wrong = scored.failed[:: drawn.num]
        if not any(wrong):
            return drawn, scored
        kept = [place for place, is_wrong in enumerate(wrong) if not is_wrong]
        self.facts["prompts_without_rewards"] = float(len(wrong) - len(kept))
        return drawn.of_prompts(kept), scored.of_prompts(kept, drawn.num)

    def _own(self, prompts: Sequence[Prompt]) -> Drawn:
        """The policy's answers."""
        num = self.config.num_answers
        if self.episodes is not None:
            return self.episodes.draw(prompts, num, self.generator)
        drawing = Drawing(masked_by=self.learners.get("mask"))
        return self.sampler.draw(prompts, num, self.generator, drawing=drawing)

    def _beside(self, name: str, prompts: Sequence[Prompt]) -> Drawn:
        """One answer to each prompt by what an algorithm names: "greedy", "reference" or "mixture"."""
        if name == "greedy":
            return self.sampler.draw(prompts, 1, self.generator, drawing=Drawing(greedy=True))
        reference = self.learners["reference"]
        if name == "reference":
            return self.sampler.draw(prompts, 1, self.generator, learner=reference)
        share = self.config.algorithm.mixture
        return self.sampler.draw(prompts, 1, self.generator, drawing=Drawing(other=reference, share=share))

    def _filled(self, drawn: Drawn, scored: Scored) -> tuple[Drawn, Scored]:
        """Groups whose rewards differ, sampled on until they fill the batch; after `MOST_ROUNDS` what there is."""
        rounds, facts, seen = 1, self.facts, len(drawn.prompts)
        differing = self._differing(drawn, scored)
        kept = drawn.of_prompts(differing), scored.of_prompts(differing, drawn.num)
        while len(kept[0].prompts) < self.config.batch_size and rounds < MOST_ROUNDS:
            more, their = self._scored()
            rounds, seen = rounds + 1, seen + len(more.prompts)
            facts = {name: facts.get(name, 0.0) + self.facts.get(name, 0.0) for name in {**facts, **self.facts}}
            differing = self._differing(more, their)
            drawn, scored = (more, their) if more.prompts else (drawn, scored)
            kept = kept[0].together(more.of_prompts(differing)), kept[1].together(their.of_prompts(differing, more.num))
        size = min(len(kept[0].prompts), self.config.batch_size)
        equal = 1 - len(kept[0].prompts) / max(seen, 1)  # of all that were sampled
        trained = float(size or len(drawn.prompts))
        told = {"sampling_rounds": float(rounds), "num_prompts": trained, "frac_reward_zero_std": equal}
        self.facts = {**facts, **told}
        if not size:
            return drawn, scored  # nothing to learn from: the batch says so in `frac_reward_zero_std`
        return kept[0].of_prompts(range(size)), kept[1].of_prompts(range(size), drawn.num)

    def _differing(self, drawn: Drawn, scored: Scored) -> list[int]:
        """Prompts that teach something."""
        masks = self.config.cut_answers == "mask"
        return scored.differing(drawn.num, [masks and rollout.stop == "length" for rollout in drawn.rollouts])

    def _finished(self, drawn: Drawn, scored: Scored) -> TokenBatch:
        """The batch, and what the metrics tell of it."""
        totals, cut = scored.totals, [rollout.stop == "length" for rollout in drawn.rollouts]
        batch = self._at_tokens(drawn, scored, drawn.batch(totals))
        written = batch.mask.sum(1).tolist()
        if self.config.cut_answers == "mask":
            batch = batch.fill(left_out=torch.tensor(cut))
        own = [row for row, source in enumerate(drawn.source.tolist()) if source == 0]
        groups = [own[i : i + drawn.own] for i in range(0, len(own), drawn.own)]
        spreads = [statistics.pstdev(totals[row] for row in group) for group in groups]
        self.facts = {
            "reward": statistics.fmean(totals[row] for row in own),
            "reward_std": statistics.fmean(spreads),
            "frac_reward_zero_std": statistics.fmean(float(spread == 0) for spread in spreads),
            **{f"rewards/{name}/mean": statistics.fmean(v[row] for row in own) for name, v in scored.parts.items()},
            "length_mean": statistics.fmean(float(written[row]) for row in own),
            "share_cut": statistics.fmean(float(cut[row]) for row in own),
            "distinct_2": statistics.fmean(distinct_pairs([_written(drawn.rollouts[row])]) for row in own),
            **self.facts,
        }
        return batch

    def _at_tokens(self, drawn: Drawn, scored: Scored, batch: TokenBatch) -> TokenBatch:
        """With what each token is paid, where something is paid before the end; all else comes at the end."""
        if self.episodes is not None:
            paid, there = batch.token_rewards, batch.token_rewards.sum(1)
        elif self.dense is None:
            return batch
        elif self.dense.kind == "rewards":
            paid, there = self.dense(scored.at_tokens, batch), self.rewards.weight * torch.tensor(scored.parts["model"])
        else:
            return batch.fill(token_rewards=self.dense(scored.at_tokens, batch))
        return batch.fill(token_rewards=paid + at_last_token(batch.rewards - there, batch.mask))

    def worth(self, drawn: Drawn) -> list[float]:
        """What single answers would be paid, those without rewards left out; [] where that cannot be said.

        A judge compares two, principles are drawn anew for each prompt, and what is watched may lack what rewards need.
        """
        model = self.rewards.model
        if self.rewards.judge is not None or (isinstance(model, Instructed) and model.sampler.num):
            return []
        try:
            scored = self._paid(drawn, self.rewards(drawn.rollouts, drawn.num))
        except InputError as error:
            say(f"the watched answers go without the optimised reward: {error}")
            return []
        return [total for total, failed in zip(scored.totals, scored.failed, strict=True) if not failed]

    def state_dict(self) -> dict[str, Any]:
        """As `Batches`."""
        state = {"drawn": self.prompts.drawn, "generator": self.generator.get_state()}
        model = self.rewards.model
        return {**state, "principles": model.num_drawn} if isinstance(model, Instructed) else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `Batches`."""
        self.prompts.drawn = state["drawn"]
        self.generator.set_state(state["generator"])
        if isinstance(self.rewards.model, Instructed):
            self.rewards.model.num_drawn = state["principles"]


class Watch:
    """The truth on held-out prompts while a policy trains: looked at, never trained on."""

    def __init__(
        self,
        source: PolicySampler | Episodes,
        prompts: Sequence[Prompt],
        oracle: Oracle,
        *,
        seed: int,
        worth: Callable[[Drawn], Sequence[float]] | None = None,
        then: Literal["stop", "mask"] = "stop",
    ) -> None:
        """`source` draws the answers, or plays the conversations; `worth` is what the optimised reward says of them.

        `then` is what is done where the oracle fails: end the run, or "mask" this look.
        """
        self.source, self.prompts, self.oracle, self.seed, self.worth = source, prompts, oracle, seed, worth
        self.then = then
        self.scores: list[float] = []  # the oracle's in the last look, prompt by prompt

    def look(self) -> dict[str, float]:
        """The oracle's mean over one answer to each prompt, its standard error, and what the optimised reward says.

        The draws are the same every time, however long the answers are by then. Empty where the oracle fails and may.
        """
        self.scores = []
        proxy: list[float] = []
        for first in range(0, len(self.prompts), ANSWERS_AT_ONCE):
            generator = torch.Generator().manual_seed(self.seed + first)
            drawn = self.source.draw(self.prompts[first : first + ANSWERS_AT_ONCE], 1, generator)
            told = self._asked(drawn)
            if told is None:
                return {}
            self.scores += told
            proxy += self.worth(drawn) if self.worth else []
        error = statistics.stdev(self.scores) / math.sqrt(len(self.scores)) if len(self.scores) > 1 else 0.0
        seen = {"oracle": statistics.fmean(self.scores), "oracle_error": error}
        return {**seen, "proxy": statistics.fmean(proxy)} if proxy else seen

    def _asked(self, drawn: Drawn) -> list[float] | None:
        """What the oracle says; None where it fails and may, or an environment did."""
        if why := next(filter(None, drawn.failed), ""):
            say(f"--oracle: no look this time: {why}")
            return None
        try:
            return self.oracle([r.prompt for r in drawn.rollouts], [r.response for r in drawn.rollouts])
        except InputError as error:
            if self.then == "stop":
                raise InputError(f"--oracle: {error} (or go on without such a look: --faults.then mask)") from error
            say(f"--oracle: no look this time: {error}")
            return None


def _written(rollout: Rollout) -> str:
    """What the policy wrote, without what an environment said."""
    return text_of(tuple(turn for turn in rollout.response if turn.role in ("assistant", "text")))
