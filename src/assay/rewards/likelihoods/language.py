"""A language-model loss beside the reward's, so that the body goes on speaking while it learns to judge."""

from dataclasses import dataclass

from torch import Tensor

from assay.batch import Metrics, ModelOutput, Term, TokenBatch
from assay.losses.masked import masked_mean
from assay.rewards.likelihoods.several import Wrapped
from assay.shapes import PairFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class WithLanguage(Wrapped):
    """The inner likelihood of comparisons, plus `coef` times the chosen response's negative log-likelihood a token.

    Both read one forward pass. The model needs its language head (`load_reward(language=True)`).

    Source: Zheng et al. 2023, arXiv:2307.04964, eq. 2, whose sign of the second term is a slip: it is minimised too.
    """

    name: str = "with_language"
    coef: float

    def __post_init__(self) -> None:
        if self.inner.reduction != "pair":
            raise ValueError(f"{type(self.inner).__name__} has no chosen response")

    def loss(self, out: ModelOutput, batch: TokenBatch) -> tuple[Tensor, Metrics]:
        """The inner one's."""
        return self.inner.loss(out, batch)

    def language(self, out: ModelOutput, batch: TokenBatch) -> tuple[PairFloat, Metrics]:
        """Nats a token of each chosen response."""
        nll = -masked_mean(out.logprobs, batch.mask)[0::2]
        return nll, {"language_nll": nll}

    def losses(self) -> tuple[Term, ...]:
        """The inner terms and the language model's."""
        return (*self.inner.losses(), Term("reward", self.language, "pair", weight=self.coef, reads=("logprobs",)))
