"""People simulated over an oracle: they prefer what it rewards, with the noise that people have."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from assay.feedback.oracles import Oracle
from assay.records import Comparison, Prompt, Response, stable_id
from assay.settings import InputError

Pair = tuple[Prompt, Response, Response]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedAnnotator:
    """Prefers the first of two responses with probability sigmoid((R*(first) - R*(second)) / temperature).

    Bradley & Terry 1952, with reward differences as log-odds. `mistake` is the share of judgements turned round
    afterwards (Christiano et al. 2017, arXiv:1706.03741, sec. 2.2.3, takes 10% drawn at random, which is a mistake of
    0.05). At temperature 0 the better response wins for certain, and a tie in R* is a fair coin.

    A label is drawn from a hash of the seed and the two texts: it depends on neither order, batch nor side, and
    judging the same pair again gives the same label. Another seed is another person.
    """

    oracle: Oracle
    temperature: float = 1.0
    seed: int = 0
    mistake: float = 0.0
    name: str = "simulated"
    objective: str = "overall"

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be 0 or more; got {self.temperature}")
        if not 0 <= self.mistake <= 0.5:
            raise InputError(f"mistake is the share of labels turned round, 0 to 0.5; got {self.mistake}")

    def probability(self, pairs: Iterable[Pair]) -> list[float]:
        """P(first preferred) of each (prompt, first, second)."""
        return [self._probability(first - second) for first, second in self._rewards(list(pairs))]

    def label(self, pairs: Iterable[Pair]) -> tuple[Comparison, ...]:
        """One judgement of each (prompt, first, second), responses left in their order; R* of both goes to `meta`."""
        pairs = list(pairs)
        return tuple(
            Comparison(
                prompt=prompt,
                responses=(first, second),
                preference=float(self._prefers_first(prompt, first, second, self._probability(better - worse))),
                annotator=self.name,
                source="simulated",
                objective=self.objective,
                meta={"oracle_rewards": [better, worse]},
            )
            for (prompt, first, second), (better, worse) in zip(pairs, self._rewards(pairs), strict=True)
        )

    def _rewards(self, pairs: list[Pair]) -> list[tuple[float, float]]:
        prompts = [prompt for prompt, _, _ in pairs for _ in range(2)]
        rewards = self.oracle(prompts, [response for _, first, second in pairs for response in (first, second)])
        if len(rewards) != len(prompts) or not all(math.isfinite(reward) for reward in rewards):
            raise InputError(f"the oracle must give {len(prompts)} finite rewards, one per response")
        return list(zip(rewards[0::2], rewards[1::2], strict=True))

    def _probability(self, difference: float) -> float:
        if self.temperature == 0 or difference == 0:
            right = 0.5 * (1 + (difference > 0) - (difference < 0))
        else:
            right = 0.5 * (1 + math.tanh(difference / self.temperature / 2))
        return (1 - self.mistake) * right + self.mistake * (1 - right)

    def _prefers_first(self, prompt: Prompt, first: Response, second: Response, probability: float) -> bool:
        """The uniform draw belongs to the unordered pair, so that swapped responses get the swapped label."""
        ordered = sorted([stable_id(first), stable_id(second)])
        key = stable_id(self.seed, self.name, self.objective, prompt.messages, ordered)
        draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
        if stable_id(first) == ordered[0]:
            return draw < probability
        return draw >= 1 - probability
