"""What moves every other figure silently: missing, tied and truncated rewards, and tied labels."""

from assay.audit.statistics import proportion
from assay.audit.table import BoolArray, ScoredPairs, ScoredSamples, TextArray
from assay.records import Finding


def rates(pairs: ScoredPairs) -> list[Finding]:
    """Shares of all pairs: missing reward, equal rewards, an answer cut by the context, label without preference."""
    columns = {
        "rate/nan": (pairs.failed, "pairs in which a reward is NaN or infinite"),
        "rate/tie": (pairs.reward_difference == 0, "pairs whose two rewards are equal"),
        "rate/truncated": (
            pairs.truncated_chosen | pairs.truncated_rejected,
            "pairs with an answer cut by the context",
        ),
        "rate/label_tie": (~pairs.labelled, "pairs whose label is a tie; accuracy leaves them out"),
    }
    return [_rate(probe, where, pairs.prompt_id, what) for probe, (where, what) in columns.items()]


def sample_rates(samples: ScoredSamples) -> list[Finding]:
    """The share of samples without a finite reward."""
    return [_rate("rate/nan_samples", samples.failed, samples.prompt_id, "samples whose reward is NaN or infinite")]


def _rate(probe: str, where: BoolArray, prompts: TextArray, what: str) -> Finding:
    found = proportion(where, prompts)
    return found.finding(probe, f"{int(where.sum())} of {found.n} {what}")
