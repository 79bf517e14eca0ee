"""One probe per file: each reads a scored table and returns findings. They measure; `assay.audit.gate` judges."""

from assay.audit.probes.abstention import abstention
from assay.audit.probes.accuracy import accuracy
from assay.audit.probes.best_of_n import best_of_n_curve
from assay.audit.probes.calibration import calibration
from assay.audit.probes.length import length
from assay.audit.probes.rates import rates, sample_rates

__all__ = ["abstention", "accuracy", "best_of_n_curve", "calibration", "length", "rates", "sample_rates"]
