"""A language-model loss beside the reward's, so that the body goes on speaking while it learns to judge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from assay.algorithms.base import Data
from assay.batch import Metrics, ModelOutput, Reduction, Term, TokenBatch
from assay.losses.masked import masked_mean
from assay.rewards.likelihoods.base import Likelihood
from assay.rewards.readout import Readout
from assay.shapes import PairFloat


@dataclass(frozen=True, slots=True, kw_only=True)
class WithLanguage(Likelihood):
    """The inner likelihood of comparisons, plus `coef` times the chosen response's negative log-likelihood a token.

    Both read one forward pass. The model needs its language head (`load_reward(language=True)`).

    Source: Zheng et al. 2023, arXiv:2307.04964, eq. 2, whose sign of the second term is a slip: it is minimised too.
    """

    name: str = "with_language"
    inner: Likelihood
    coef: float

    def __post_init__(self) -> None:
        if self.inner.reduction != "pair":
            raise ValueError(f"{type(self.inner).__name__} has no chosen response")

    @property
    def data(self) -> Data:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.data

    @property
    def reduction(self) -> Reduction:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.reduction

    @property
    def columns(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner one."""
        return self.inner.columns

    @property
    def num_outputs(self) -> int:
        """As the inner one."""
        return self.inner.num_outputs

    @property
    def readout(self) -> Readout:
        """As the inner one."""
        return self.inner.readout

    @property
    def learned(self) -> dict[str, Tensor]:
        """As the inner one."""
        return self.inner.learned

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
