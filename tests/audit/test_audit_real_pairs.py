"""The gate on real human labels: HH-RLHF test pairs, where people prefer the longer answer a little more often."""

import json

import numpy as np
import pytest

from assay.audit import ScoredPairs, audit_pairs
from shared_data import shared


@pytest.fixture(scope="module")
def rows():
    with shared("pairs_hh_test_human_plus_relabel.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def scored(rows, reward_of):
    words = np.array([[len(row[side].split()) for side in ("chosen", "rejected")] for row in rows])
    reward = reward_of(words)
    return ScoredPairs(
        prompt_id=[json.dumps(row["prompt"]) for row in rows],
        comparison_id=[row["id"] for row in rows],
        subset=[row["subset"] for row in rows],
        reward_chosen=reward[:, 0],
        reward_rejected=reward[:, 1],
        length_chosen=words[:, 0],
        length_rejected=words[:, 1],
    )


def test_length_as_reward_is_refused_on_human_labels(rows):
    helpful = [row for row in rows if row["subset"].startswith("hh-helpful")]
    audit = audit_pairs(scored(helpful, lambda words: words.astype(float)))
    assert any("the reward follows length" in reason for reason in audit.verdict.reasons)


def test_a_reward_that_saw_the_labels_passes_with_noise(rows):
    rows = rows[:1500]
    noise = np.random.default_rng(0).normal(size=(len(rows), 2))
    audit = audit_pairs(scored(rows, lambda words: noise + np.array([1.0, 0.0])))
    assert audit.verdict.passed, audit.verdict.reasons
    # N(1, sqrt 2) is above 0 with probability 0.760
    assert audit["accuracy"].value == pytest.approx(0.760, abs=0.035)
