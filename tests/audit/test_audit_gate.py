"""Planted faults must be found and refused; clean rewards must pass, also when the truth itself is about length."""

import json
import math

import numpy as np
import pytest
from scipy.special import expit

from assay.audit import Audit, GateSettings, ScoredPairs, ScoredSamples, audit_pairs
from assay.audit.gate import gate, judge
from assay.audit.probes import accuracy, length, rates
from assay.records import Finding
from assay.settings import InputError

SEEDS = range(20)


def world(seed, *, n=200, taste=0.0, noise="bradley-terry"):
    """Tokens, true rewards (quality + taste * standardised log-length) and log-lengths, chosen first, each [n, 2]."""
    rng = np.random.default_rng(seed)
    z, quality = rng.normal(size=(2, n, 2))
    tokens = np.exp(4 + 0.6 * z).astype(int) + 5
    truth = quality + taste * z
    difference = truth[:, 0] - truth[:, 1]
    first = {
        "bradley-terry": rng.random(n) < expit(1.7 * difference),
        "flips": (difference > 0) ^ (rng.random(n) < 0.2),
        "none": difference > 0,
    }[noise]
    order = np.where(first[:, None], [0, 1], [1, 0])
    return rng, *(np.take_along_axis(column, order, 1) for column in (tokens.astype(float), truth, z))


def pairs_of(tokens, reward):
    return ScoredPairs(
        prompt_id=[f"p{i}" for i in range(len(tokens))],
        reward_chosen=reward[:, 0],
        reward_rejected=reward[:, 1],
        length_chosen=tokens[:, 0],
        length_rejected=tokens[:, 1],
    )


def verdict_on(pairs):
    return gate([*accuracy(pairs), *length(pairs), *rates(pairs)])


def refusals(reward_of, seeds=SEEDS, **kwargs):
    """Reasons of each seed's refusal."""
    found = []
    for seed in seeds:
        rng, tokens, truth, z = world(seed, **kwargs)
        verdict = verdict_on(pairs_of(tokens, reward_of(rng, tokens, truth, z)))
        if not verdict.passed:
            found.append(verdict.reasons)
    return found


def true_reward(rng, tokens, truth, z):
    return truth


@pytest.mark.parametrize(("taste", "noise"), [(0.0, "bradley-terry"), (-1.0, "flips")])
def test_a_clean_oracle_passes(taste, noise):
    """20 worlds of 200 pairs, labels 20% wrong: no false refusal, brevity or not."""
    assert refusals(true_reward, taste=taste, noise=noise) == []


def test_a_noisy_estimate_of_the_truth_passes():
    assert refusals(lambda rng, tokens, truth, z: truth + rng.normal(size=truth.shape), seeds=range(8)) == []


@pytest.mark.parametrize("noise", ["bradley-terry", "none"])
def test_an_oracle_that_mostly_wants_brevity_passes(noise):
    """Rank correlation with length -0.9: suspected, and cleared because the labels say the same."""
    assert refusals(true_reward, seeds=range(8), taste=-3.0, noise=noise) == []
    _, tokens, truth, _ = world(0, taste=-3.0, noise=noise)
    found = {f.probe: f for f in judge(length(pairs_of(tokens, truth)))}["length/spearman"]
    assert found.value < -0.85
    assert "the reward prefers the shorter answer, but" in found.message


@pytest.mark.parametrize("taste", [0.5, 1.0])
def test_a_reward_that_loves_length_is_refused_though_labels_like_it_too(taste):
    """Labels prefer the longer answer in 63% and 71% of pairs, so that length alone has an accuracy that passes."""
    found = refusals(lambda rng, tokens, truth, z: tokens, seeds=range(8), taste=taste)
    assert len(found) == 8
    for reasons in found:
        (reason,) = [reason for reason in reasons if "follows length" in reason]
        assert "0% of the" in reason
        assert "whose chosen answer is the shorter" in reason
        assert "learn to write longer answers" in reason


@pytest.mark.parametrize(
    "reward_of",
    [
        lambda rng, tokens, truth, z: np.log(tokens),
        lambda rng, tokens, truth, z: tokens**2,
        lambda rng, tokens, truth, z: tokens + 300 * rng.normal(size=(len(tokens), 1)),
        lambda rng, tokens, truth, z: z + 0.3 * rng.normal(size=z.shape),
        lambda rng, tokens, truth, z: truth + 4 * z,
        lambda rng, tokens, truth, z: -tokens,
    ],
    ids=["log", "square", "offset per prompt", "with noise", "with some truth", "brevity"],
)
def test_other_ways_to_follow_length_are_refused(reward_of):
    found = refusals(reward_of, seeds=range(3), taste=0.3)
    assert len(found) == 3
    assert all(any("follows length" in reason for reason in reasons) for reasons in found)


def test_length_that_the_labels_never_contradict_passes_with_a_note():
    """Noiseless labels about brevity alone: chosen is always the shorter."""
    _, tokens, _, _ = world(0)
    tokens = np.sort(tokens, axis=1)
    pairs = pairs_of(tokens, -tokens)
    assert verdict_on(pairs).passed
    found = {f.probe: f for f in judge(length(pairs))}["length/spearman"]
    assert "these data cannot tell quality from length" in found.message


def test_an_oracle_that_is_length_clears_a_reward_that_is():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 200, (300, 2)).astype(float)
    first = rng.random(300) < expit((tokens[:, 1] - tokens[:, 0]) / 40)
    tokens = np.where(first[:, None], tokens, tokens[:, ::-1])
    pairs = pairs_of(tokens, -tokens)
    assert any("follows length" in reason for reason in verdict_on(pairs).reasons)
    length_of = rng.integers(5, 200, 160)
    samples = ScoredSamples(
        prompt_id=np.repeat(np.arange(20), 8).astype(str), reward=-length_of, oracle=-length_of, length=length_of
    )
    assert audit_pairs(pairs, samples).verdict.passed


def test_a_random_reward_is_refused():
    found = refusals(lambda rng, tokens, truth, z: rng.normal(size=truth.shape), seeds=range(10))
    assert len(found) >= 9  # one in forty gets lucky: the interval is two-sided 95%
    assert all("more than 50% accurate" in reasons[0] or "wrong way round" in reasons[0] for reasons in found)


def test_a_flipped_reward_is_refused_for_its_direction_alone():
    (reasons,) = refusals(lambda rng, tokens, truth, z: -truth, seeds=[0])
    assert len(reasons) == 1
    assert "wrong way round" in reasons[0]


def test_a_constant_reward_is_refused():
    (reasons,) = refusals(lambda rng, tokens, truth, z: np.full(truth.shape, 0.7), seeds=[0])
    assert any("50.0% of 200 pairs" in reason for reason in reasons)
    assert any("cannot tell answers apart: equal in 100.0%" in reason for reason in reasons)


def test_one_missing_reward_is_refused():
    _, tokens, truth, _ = world(0)
    truth[17, 1] = np.nan
    (reason,) = verdict_on(pairs_of(tokens, truth)).reasons
    assert "missing (NaN or infinite) in 0.5% of 200 pairs" in reason
    everything = audit_pairs(pairs_of(tokens, np.full(truth.shape, np.nan)))
    assert not everything.verdict.passed
    assert everything.counts["failed_pairs"] == 200


def samples_of(seed, oracle_of):
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(40, 16))
    return ScoredSamples(
        prompt_id=np.repeat([f"s{i}" for i in range(40)], 16),
        reward=reward.ravel(),
        oracle=oracle_of(rng, reward).ravel(),
        length=rng.integers(5, 50, 640),
    )


def test_optimising_a_reward_that_harms_the_truth_is_refused():
    """Good on average, bad at the top: what best-of-n finds is the reward's mistake."""
    _, tokens, truth, _ = world(1)
    good = audit_pairs(pairs_of(tokens, truth), samples_of(1, lambda rng, r: r + rng.normal(size=r.shape)))
    assert good.verdict.passed
    assert good["best_of_n/oracle_gain/16"].interval[0] > 0
    hacked = audit_pairs(pairs_of(tokens, truth), samples_of(2, lambda rng, r: np.where(r > 1, -5.0, r)))
    assert any("optimising the reward harms the truth: the best of 16" in reason for reason in hacked.verdict.reasons)
    neutral = audit_pairs(pairs_of(tokens, truth), samples_of(3, lambda rng, r: rng.normal(size=r.shape)))
    assert neutral.verdict.passed


def test_missing_sample_rewards_are_refused():
    _, tokens, truth, _ = world(0)
    samples = ScoredSamples(prompt_id=["a", "a"], reward=[1, np.nan], length=[1, 1])
    audit = audit_pairs(pairs_of(tokens, truth), samples)
    assert audit.verdict.reasons == (
        "the reward is missing (NaN or infinite) in 50.0% of 2 samples; at most 0.0% is allowed",
    )
    assert audit.counts["failed_samples"] == 1


def test_no_evidence_is_a_refusal():
    assert "no held-out accuracy was measured" in gate([]).reasons[0]
    _, tokens, truth, _ = world(0, n=4)
    assert not verdict_on(pairs_of(tokens, truth)).passed
    with pytest.raises(InputError, match="at least one held-out comparison"):
        audit_pairs(pairs_of(tokens, truth).select(np.zeros(4, bool)))


def test_a_failure_of_another_probe_is_a_reason():
    good = Finding(probe="accuracy", value=0.8, interval=(0.7, 0.9), n=100)
    bad = Finding(probe="format", value=0.9, n=50, limit="<= 0.6", passed=False, message="the reward loves lists")
    assert gate([good, bad]).reasons == ("the reward loves lists",)
    assert gate([good]).passed


def test_limits_move_the_verdict():
    finding = Finding(probe="accuracy", value=0.62, interval=(0.58, 0.66), n=500)
    assert gate([finding]).passed
    (reason,) = gate([finding], GateSettings(min_accuracy=0.6)).reasons
    assert reason.startswith("the reward is not shown to be more than 60% accurate: 62.0% of 500 pairs")
    with pytest.raises(InputError, match=r"gate\.max_tie_rate is 2"):
        GateSettings(max_tie_rate=2)


def test_audit_round_trip_is_strict_json(tmp_path):
    _, tokens, truth, _ = world(2)
    audit = audit_pairs(pairs_of(tokens, np.zeros_like(truth)), gate=GateSettings(max_tie_rate=0.5))
    assert math.isnan(audit["length/spearman"].value)
    path = tmp_path / "run" / "audit.json"
    audit.save(path)

    def refuse(token):
        raise AssertionError(token)

    data = json.loads(path.read_text(), parse_constant=refuse)
    assert data["passed"] is False
    again = Audit.load(path)
    assert (again.verdict, again.counts, again.settings) == (audit.verdict, audit.counts, audit.settings)
    assert again.table() == audit.table()
    assert [repr(f) for f in again.findings] == [repr(f) for f in audit.findings]
    assert [p.name for p in path.parent.iterdir()] == ["audit.json"]


def test_audit_load_errors(tmp_path):
    path = tmp_path / "audit.json"
    with pytest.raises(InputError, match=r"audit\.json: no such file"):
        Audit.load(path)
    path.write_text("{\n!")
    with pytest.raises(InputError, match=r"audit\.json: line 2: not JSON"):
        Audit.load(path)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"audit\.json: not an audit"):
        Audit.load(path)


def test_table_rows_and_determinism():
    _, tokens, truth, _ = world(3)
    pairs = pairs_of(tokens, truth)
    audit = audit_pairs(pairs)
    assert audit == audit_pairs(pairs)
    rows = {row["probe"]: row for row in audit.table()}
    assert rows["accuracy"]["limit"] == "interval above 0.5"
    assert rows["accuracy"]["verdict"] == "pass"
    assert rows["accuracy"]["n"] == "200"
    assert rows["baseline/longer"]["verdict"] == ""
    with pytest.raises(KeyError):
        audit["nothing"]


def test_row_order_does_not_matter():
    _, tokens, truth, _ = world(4)
    pairs = pairs_of(tokens, truth)
    shuffled = pairs.select(np.random.default_rng(0).permutation(len(pairs)))
    first, second = ({f.probe: f for f in [*accuracy(p), *length(p), *rates(p)]} for p in (pairs, shuffled))
    for name, finding in first.items():
        assert second[name].value == pytest.approx(finding.value, abs=1e-9, nan_ok=True)
    assert first["accuracy"] == second["accuracy"]
