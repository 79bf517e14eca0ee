"""Name -> likelihood."""

from assay.rewards.likelihoods.annotators import Annotators
from assay.rewards.likelihoods.base import Likelihood
from assay.rewards.likelihoods.check import check_gradient
from assay.rewards.likelihoods.comparisons import (
    BradleyTerry,
    Categorical,
    Davidson,
    MeanVariance,
    RaoKupper,
    Thurstone,
)
from assay.rewards.likelihoods.dense import Outcome, Process, Spans, TokenBradleyTerry
from assay.rewards.likelihoods.groups import AnnotatorGroups
from assay.rewards.likelihoods.language import WithLanguage
from assay.rewards.likelihoods.rankings import BestOfK, KwiseBradleyTerry, PlackettLuce
from assay.rewards.likelihoods.ratings import Binary, Ordinal, Regression
from assay.rewards.likelihoods.several import Opinions, PerObjective

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bradley_terry": BradleyTerry,
    "thurstone": Thurstone,
    "rao_kupper": RaoKupper,
    "davidson": Davidson,
    "mean_variance": MeanVariance,
    "categorical": Categorical,
    "annotators": Annotators,
    "annotator_groups": AnnotatorGroups,
    "plackett_luce": PlackettLuce,
    "kwise_bradley_terry": KwiseBradleyTerry,
    "best_of_k": BestOfK,
    "regression": Regression,
    "binary": Binary,
    "ordinal": Ordinal,
    "process": Process,
    "outcome": Outcome,
    "spans": Spans,
    "token_bradley_terry": TokenBradleyTerry,
}

__all__ = [
    "LIKELIHOODS",
    "AnnotatorGroups",
    "Annotators",
    "Likelihood",
    "Opinions",
    "PerObjective",
    "WithLanguage",
    "check_gradient",
]
