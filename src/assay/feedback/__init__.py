"""Human feedback in and out: readers, checks, splits, writers, and people simulated over real text. No torch."""

from assay.feedback.annotators import SimulatedAnnotator
from assay.feedback.oracles import Oracle, TextOracle, length_lover
from assay.feedback.read import read_comparisons, read_demonstrations, read_prompts, read_texts
from assay.feedback.split import Leaks, leaks, split_by_prompt
from assay.feedback.validate import Read, Report
from assay.feedback.write import write_records

__all__ = [
    "Leaks",
    "Oracle",
    "Read",
    "Report",
    "SimulatedAnnotator",
    "TextOracle",
    "leaks",
    "length_lover",
    "read_comparisons",
    "read_demonstrations",
    "read_prompts",
    "read_texts",
    "split_by_prompt",
    "write_records",
]
