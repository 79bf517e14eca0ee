"""Rewards known in advance, as programs over real text: what simulated people want, so that truth can be measured.

`TextOracle` likes friendly, concise, varied answers that take up the prompt's words without copying it.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from assay.records import Message, Prompt, Response, text_of
from assay.settings import InputError, Settings

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
STEM = 5  # letters on which content words match, so that "painting" meets "paintings" and "painter"
PROSE = 0.2  # share of function words; in the answers of people (LIMA) its median is 0.47
NO_CONTENT = """
a about above after again all also am an and any are as at be because been before being below between both but by can
could did do does doing don't down during each few for from further give had has have having he her here hers him his
how i i'm if in into is it it's its just let like make many may me might more most much my need no nor not now of off
on once one only or other our out over own please same shall she should so some such tell than that the their them
then there these they this those through to too under until up us use very want was we were what when where which
while who whom whose why will with would write you your yours
"""
FUNCTION_WORDS = frozenset(NO_CONTENT.split())


class Oracle(Protocol):
    """R*: the reward that simulated people follow, one number per response."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        """Rewards of responses to prompts of the same length."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOracle(Settings):
    """A weighted sum of seven parts, each a plain function of the text; a weight of 0 leaves its part out.

    Each weight is the most that its part adds or takes away, except brevity's, which grows with the logarithm of the
    length. Sentiment: VADER, Hutto & Gilbert 2014.
    """

    sentiment: float = 4.0  # VADER's compound in [-1, 1], mean over sentences
    on_topic: float = 2.0  # content words of the prompt taken up: 1 - exp(-number / 2)
    brevity: float = 2.0  # log(1 + words beyond the target / target)
    repetition: float = 6.0  # share of word pairs said before, or of words said twice in a row
    echo: float = 6.0  # share of the answer's word triples that stand in the prompt
    substance: float = 6.0  # how far short of `min_words` an answer falls, as a share
    prose: float = 6.0  # how far short of a fifth the share of function words falls: word lists have none
    target_words: int = 50
    min_words: int = 8

    def __post_init__(self) -> None:
        if self.target_words < 1 or self.min_words < 1:
            raise InputError("target_words and min_words must be at least 1")

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[float]:
        """Rewards, one per response."""
        return [sum(parts.values()) for parts in self.parts(prompts, responses)]

    def parts(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[dict[str, float]]:
        """The signed, weighted part of each term; they sum to the reward."""
        if len(prompts) != len(responses):
            raise InputError(f"an oracle needs a prompt per response; got {len(prompts)} and {len(responses)}")
        return [self._parts(prompt, text_of(answer)) for prompt, answer in zip(prompts, responses, strict=True)]

    def _parts(self, prompt: Prompt, answer: str) -> dict[str, float]:
        asked, said = words(question_of(prompt)), words(answer)
        values = {
            "sentiment": lambda: sentiment(answer),
            "on_topic": lambda: taken_up(asked, said),
            "brevity": lambda: -excess(len(said), self.target_words),
            "repetition": lambda: -repeated(said),
            "echo": lambda: -echoed(asked, said),
            "prose": lambda: -listed(said),
            "substance": lambda: -max(0.0, 1 - len(said) / self.min_words),
        }
        weights: Mapping[str, float] = {name: getattr(self, name) for name in values}
        return {name: weights[name] * value() for name, value in values.items() if weights[name]}


def question_of(prompt: Prompt) -> str:
    """What the response has to answer: the last user turn, or the whole of a plain text."""
    asked = [message.content for message in prompt.messages if message.role in ("user", "text")]
    return asked[-1] if asked else ""


def words(text: str) -> list[str]:
    """Lower-case words; punctuation and underscores separate them."""
    return WORD.findall(text.casefold())


def sentiment(text: str) -> float:
    """VADER's compound, mean over the sentences that have words, in [-1, 1]; 0 for no words.

    By sentence, for the compound of a long text saturates at 1 and would reward length.
    """
    sentences = [sentence for sentence in SENTENCE_END.split(text) if WORD.search(sentence)]
    if not sentences:
        return 0.0
    return math.fsum(_vader().polarity_scores(sentence)["compound"] for sentence in sentences) / len(sentences)


@functools.cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # reads its lexicon of 7,500 words

    return SentimentIntensityAnalyzer()


def taken_up(asked: Sequence[str], said: Sequence[str]) -> float:
    """1 - exp(-n / 2) for the n content words of the prompt that the answer has too, in [0, 1)."""
    shared = {word[:STEM] for word in asked if word not in FUNCTION_WORDS} & {word[:STEM] for word in said}
    return 1 - math.exp(-len(shared) / 2)


def excess(num_words: int, target: int) -> float:
    """log(1 + s / target), s the words beyond the target, smoothed over a fifth of it: softplus."""
    width = target / 5
    beyond = width * math.log1p(math.exp(-abs(num_words - target) / width)) + max(num_words - target, 0)
    return math.log1p(beyond / target)


def repeated(said: Sequence[str]) -> float:
    """The larger of: share of word pairs that occurred before, share of words equal to the one before; in [0, 1]."""
    if len(said) < 2:
        return 0.0
    pairs = list(pairwise(said))
    again = len(pairs) - len(set(pairs))
    doubled = sum(first == second for first, second in pairs)
    return max(again, doubled) / len(pairs)


def listed(said: Sequence[str]) -> float:
    """How far the share of function words falls short of PROSE, as a share of it, in [0, 1]; 0 for no words."""
    if not said:
        return 0.0
    return max(0.0, 1 - sum(word in FUNCTION_WORDS for word in said) / len(said) / PROSE)


def echoed(asked: Sequence[str], said: Sequence[str]) -> float:
    """Share of the answer's word triples that stand in the prompt (all its words, if fewer than three), in [0, 1]."""
    size = min(3, len(said))
    if size == 0:
        return 0.0
    source, answer = Counter(_grams(asked, size)), list(_grams(said, size))
    return sum(gram in source for gram in answer) / len(answer)


def _grams(tokens: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(size)), strict=False)


def length_lover(prompts: Sequence[Any], responses: Sequence[Any], **_columns: Any) -> list[float]:
    """The number of words: a reward known to be bad, for planting.

    Takes records' responses as an oracle does, and texts or message lists as a programmatic reward does.
    """
    return [float(len(words(_plain_text(response)))) for response in responses]


def _plain_text(response: Any) -> str:
    if isinstance(response, str):
        return response
    return "\n\n".join(turn.content if isinstance(turn, Message) else turn["content"] or "" for turn in response)
