"""Whether the reward is wrong where it is unsure, so that what it is unsure of can be left to people."""

from assay.audit.abstention import doubt, risk_coverage
from assay.audit.table import ScoredPairs
from assay.records import Finding


def abstention(pairs: ScoredPairs) -> list[Finding]:
    """Area under the risk-coverage curve, and errors among the surer half; none for a model that knows no uncertainty.

    Label ties and pairs with a missing reward are left out.
    """
    pairs = pairs.select(pairs.labelled & ~pairs.failed & (pairs.uncertainty == pairs.uncertainty))
    if not len(pairs):
        return []
    curve = risk_coverage(pairs.correct, doubt(pairs.reward_difference, pairs.uncertainty))
    errors = 1 - float(pairs.correct.mean())
    about = f"{errors:.3f} if uncertainty knew nothing"
    return [
        Finding(
            probe="abstention/area", value=curve.area, n=len(pairs), message=f"mean error over all coverages; {about}"
        ),
        Finding(
            probe="abstention/surer_half",
            value=curve.at(0.5),
            n=len(pairs),
            message=f"error of the surer half; {about}",
        ),
    ]
