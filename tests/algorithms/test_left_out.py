"""Answers that are not trained on still say what their siblings are worth, their KL charged."""

import pytest
import torch

from algorithms.by_hand import answers, ready
from assay.algorithms.grpo import GRPO
from assay.algorithms.rloo import RLOO

t = torch.tensor


@pytest.mark.parametrize("algorithm", [RLOO(kl_coef=0.05), GRPO(kl_coef=0.05, kl_in="reward", scale="none")])
def test_an_answer_left_out_is_charged_its_kl_in_the_baseline(algorithm):
    """Two answers of reward 1, each 10 nats from the reference, the second cut: neither is better than the other."""
    ref = torch.full((2, 2), -6.0)
    batch = answers([1.0, 1.0], left_out=t([False, True]))
    assert ready(algorithm, batch, ref=ref).advantages.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    worse = answers([1.0, 0.0], left_out=t([False, True]))
    assert ready(algorithm, worse, ref=ref).advantages[0, 0] > 0
