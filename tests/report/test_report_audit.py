"""The report reads what the audit really writes."""

import numpy as np

from assay.audit import ScoredPairs, ScoredSamples, audit_pairs
from assay.report.html import write_report
from assay.report.run import RunDirectory


def audited(run: RunDirectory, *, right: bool) -> str:
    random = np.random.default_rng(0)
    prompts = np.array([f"p{place // 8}" for place in range(240)], dtype=object)
    difference = random.normal(1.5 if right else -1.5, 1, 240)
    pairs = ScoredPairs(
        prompt_id=prompts,
        reward_chosen=difference,
        reward_rejected=np.zeros(240),
        length_chosen=random.integers(5, 50, 240),
        length_rejected=random.integers(5, 50, 240),
    )
    reward = random.normal(size=240)
    samples = ScoredSamples(
        prompt_id=prompts, reward=reward, length=random.integers(5, 50, 240), oracle=reward + random.normal(size=240)
    )
    audit_pairs(pairs, samples).save(run.audit)
    return " ".join(write_report(run).read_text(encoding="utf-8").split())


def test_a_passed_audit(tmp_path):
    page = audited(RunDirectory(tmp_path), right=True)
    assert '<p class="figure">passed</p>' in page
    assert "none missed." in page
    assert "The points of the best-of-n curve" in page
    assert 'alt="Line chart against n, responses to choose from (doubling). reward: ' in page
    assert "min_accuracy_against_length" in page


def test_a_failed_audit_gives_its_reason(tmp_path):
    page = audited(RunDirectory(tmp_path), right=False)
    assert '<p class="figure">failed</p>' in page
    assert "<li>the reward ranks answers the wrong way round" in page
