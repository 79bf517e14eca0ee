"""The reward model under test: probes over one scored table, honest statistics, and a gate. No torch."""

from assay.audit.gate import GateSettings, Verdict
from assay.audit.run import Audit, audit_pairs
from assay.audit.table import ScoredPairs, ScoredSamples

__all__ = ["Audit", "GateSettings", "ScoredPairs", "ScoredSamples", "Verdict", "audit_pairs"]
