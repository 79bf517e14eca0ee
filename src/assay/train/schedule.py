"""Learning rates."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, num_steps: int, *, peak: float, warmup: float, schedule: Schedule) -> float:
    """The rate of step `step` (from 0): up linearly over the first `warmup` share, then as the schedule says.

    "linear" and "cosine" fall from the peak to 0 at `num_steps`.
    """
    rising = warmup * num_steps
    if step + 1 <= rising:
        return peak * (step + 1) / rising
    if schedule == "constant":
        return peak
    left = 1 - (step - rising) / max(1.0, num_steps - rising)
    left = min(1.0, max(0.0, left))
    return peak * left if schedule == "linear" else peak * 0.5 * (1 - math.cos(math.pi * left))
