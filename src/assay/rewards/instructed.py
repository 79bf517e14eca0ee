"""A reward model that is told what to judge by: the same weights serve any set of principles, new ones too.

Source: Sun et al. 2024, arXiv:2310.05910 (SALMON), sec. 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from torch import Tensor

from assay.records import Prompt, reply, user_prompt
from assay.rewards.model import Conversation, Reward, as_pair
from assay.rewards.principles import PrincipleSampler, Told, find, instructed, read_principles
from assay.settings import InputError, Settings
from assay.tokens.chat import Encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class PrincipleSettings(Settings):
    """What an instructable reward model is told with every answer."""

    path: str = ""  # a file of principles, YAML or JSON lines: name, text, negation, weight, tags
    told: tuple[str, ...] = ()  # those that every answer is judged by; "not:name" for the negation
    num: int = 0  # further ones drawn by weight for each prompt that a policy answers
    boosts: dict[str, float] = field(default_factory=dict)  # tag -> added weight where a prompt's `kind` is that tag

    def sampler(self) -> PrincipleSampler | None:
        """What these settings say; None where no file is named. Raises InputError for what could not be told."""
        if not self.path:
            if self.told or self.num:
                raise InputError("--principles.path is missing: give a file of principles")
            return None
        if not self.told and self.num < 1:
            raise InputError(f"--principles.path {self.path}: none is told: name them with --principles.told")
        known = read_principles(self.path)
        fixed = find(known, self.told)
        names = {principle.name for principle, _ in fixed}
        others = tuple(principle for principle in known if principle.name not in names)
        if self.num > len(others):
            raise InputError(f"--principles.num {self.num}: {self.path} has {len(others)} others than those told")
        return PrincipleSampler(principles=others, num=self.num, boosts=self.boosts, fixed=fixed)


class Instructed(Reward):
    """A reward whose conversations end with the principles to judge by.

    All answers to one prompt in a row are judged by the same ones: rewards that are compared must mean the same.
    """

    def __init__(self, inner: Reward, sampler: PrincipleSampler, *, seed: int = 0) -> None:
        self.inner, self.sampler, self.seed = inner, sampler, seed
        self.name, self.encoder, self.readout = inner.name, inner.encoder, inner.readout
        self.num_drawn = 0  # how often principles were drawn: a resumed run goes on from there
        self._last: tuple[str, tuple[Told, ...]] = ("", ())

    @property
    def context(self) -> int:
        """As the inner one's."""
        return self.inner.context

    @property
    def room(self) -> int:
        """Tokens left for a conversation beside the longest principles that it could be told."""
        sampler = self.sampler
        drawn = sorted(sampler.principles, key=lambda p: len(p.text), reverse=True)[: sampler.num]
        longest = (*((principle, 1) for principle in drawn), *sampler.fixed)
        short = (user_prompt("?"), reply("!"))
        told = self.inner.encode((short[0], instructed(short[1], longest)))
        return self.context - (told.num_tokens - self.inner.encode(short).num_tokens)

    def encode(self, conversation: Conversation) -> Encoded:
        """Ids of the conversation and what it is judged by."""
        prompt, response = as_pair(conversation)
        return self.inner.encode((prompt, instructed(response, self.told(prompt))))

    def told(self, prompt: Prompt) -> tuple[Told, ...]:
        """What answers to this prompt are judged by; drawn anew when another prompt's answers come."""
        if self._last[0] != prompt.id:
            rng = Random(f"{self.seed} {self.num_drawn}")
            self._last = (prompt.id, self.sampler.sample(str(prompt.meta.get("kind", "")), rng))
            self.num_drawn += 1
        return self._last[1]

    def anew(self) -> None:
        """Another batch begins: its first prompt's principles are drawn, whichever prompt came last."""
        self._last = ("", ())

    def outputs_encoded(self, encoded: Sequence[Encoded]) -> Tensor:
        """As the inner one's."""
        return self.inner.outputs_encoded(encoded)
