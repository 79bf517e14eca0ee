"""Name -> algorithm."""

from assay.algorithms.base import Algorithm, Learners
from assay.algorithms.dpo import DPO
from assay.algorithms.rloo import RLOO
from assay.algorithms.sft import SFT

ALGORITHMS: dict[str, type] = {
    "sft": SFT,
    "dpo": DPO,
    "rloo": RLOO,
}

__all__ = ["ALGORITHMS", "Algorithm", "Learners"]
