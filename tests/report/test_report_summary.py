import pytest

from assay.records import Finding
from assay.report.run import RunDirectory, write_json
from assay.report.summary import (
    Document,
    artifacts,
    distance,
    ended,
    flat,
    gain,
    grouped,
    read_document,
    verdict,
    warnings,
)


def evaluation(*findings: Finding) -> Document:
    return Document("evaluation.json", findings, {})


def audit(passed: bool, *findings: Finding, **rest) -> Document:
    return Document("audit.json", findings, {"verdict": {"passed": passed, "reasons": []}, **rest})


@pytest.mark.parametrize(
    ("interval", "tone", "words"),
    [
        ((0.1, 0.4), "good", "Better than the base: the whole interval lies above 0."),
        ((-0.4, -0.1), "bad", "Worse than the base: the whole interval lies below 0."),
        ((-0.1, 0.4), "plain", "No clear change: the interval includes 0."),
        ((0.0, 0.4), "plain", "No clear change: the interval includes 0."),
        (None, "plain", "No interval was given, so chance is not ruled out."),
    ],
)
def test_gain_is_judged_by_its_interval(interval, tone, words):
    told = gain(evaluation(Finding(probe="oracle gain", value=0.2, n=50, interval=interval)))
    assert (told.figure, told.tone) == ("+0.200", tone)
    assert told.sentence.endswith(words)


def test_a_win_rate_is_even_at_one_half():
    told = gain(evaluation(Finding(probe="win_rate", value=0.45, n=80, interval=(0.4, 0.49))))
    assert (told.label, told.figure, told.tone) == ("Win rate against the base model", "0.450", "bad")
    assert "below 0.500" in told.sentence


def test_gain_comes_before_wins_and_both_before_others():
    kl, wins, oracle = (Finding(probe=name, value=0.3, n=9) for name in ("KL", "win rate", "Oracle gain"))
    assert gain(evaluation(kl, wins, oracle)).label == "Gain over the base model"
    assert gain(evaluation(kl, wins)).label == "Win rate against the base model"
    assert gain(evaluation(kl)).label == "KL"
    assert gain(evaluation()).figure == gain(None).figure == "not run"


def test_verdict_counts_limits():
    met = Finding(probe="a", value=0.7, n=9, limit=">= 0.6")
    missed = Finding(probe="b", value=0.7, n=9, limit="<= 0.6", passed=False)
    reported = Finding(probe="c", value=0.7, n=9)
    assert verdict(audit(True, met, reported)).sentence == "The reward met its audit: 1 limit, none missed."
    told = verdict(audit(False, met, missed, reported))
    assert (told.figure, told.tone) == ("failed", "bad")
    assert told.sentence.startswith("The reward missed 1 of 2 limits")
    assert verdict(None).figure == "not run"
    assert verdict(evaluation()).figure == "no verdict"


def test_distance_is_the_last_logged():
    rows = [{"step": 1, "kl": 2.0}, {"step": 2, "kl": 3.5}, {"step": 3, "kl": None}]
    assert distance(rows).figure == "3.50 nats"
    assert "step 2" in distance(rows).sentence
    assert distance([{"step": 1}]).figure == "not run"


def test_distance_and_a_warning_are_of_the_policy_that_was_kept(tmp_path):
    """What is logged at step 2 was sampled by the policy of step 1."""
    rows = [{"step": step, "kl": kl} for step, kl in ((1, 0.0), (2, 0.8), (3, 6.3), (4, 1.3))]
    place = RunDirectory(tmp_path)
    assert ended(place) == (None, [])
    place.record("policy", stopped="kl is 2.1, its limit 0.5 (stop.kl)", kept_step=1)
    step, (warning,) = ended(place)
    assert distance(rows, step).figure == "0.800 nats" and "of step 1" in distance(rows, step).sentence
    assert warning == (
        "A limit ended the training, and the policy of step 1 was kept: kl is 2.1, its limit 0.5 (stop.kl)."
    )


def test_a_sound_run_has_no_warnings(tmp_path):
    rows = [{"step": 0, "reward": 0.0, "oracle": 0.0, "kl": 0.0}, {"step": 1, "reward": 1.0, "oracle": 0.4, "kl": 1.0}]
    assert warnings(RunDirectory(tmp_path), audit(True), evaluation(), rows) == []


def test_a_failed_gate_warns_only_once_a_policy_exists(tmp_path):
    run = RunDirectory(tmp_path)
    assert warnings(run, audit(False), None, []) == []
    run.policy.mkdir()
    (warning,) = warnings(run, audit(False), None, [])
    assert "gate was overridden" in warning


def test_an_unaudited_reward_warns_but_a_direct_method_has_none(tmp_path):
    run = RunDirectory(tmp_path)
    run.policy.mkdir()
    assert warnings(run, None, None, []) == []
    run.reward.mkdir()
    (warning,) = warnings(run, None, None, [])
    assert "not audited" in warning


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"reward": 2.0, "oracle": -0.5}, "the reward rose from 1 to 2 while the oracle fell from 0 to −0.500"),
        ({"share_cut": 0.25}, "25% of the responses were cut"),
        ({"loss": None}, "1 metric value not finite"),
    ],
)
def test_metrics_that_warn(tmp_path, row, words):
    rows = [{"step": 0, "reward": 1.0, "oracle": 0.0}, {"step": 5, **row}]
    (warning,) = warnings(RunDirectory(tmp_path), None, None, rows)
    assert words in warning


def test_reward_and_oracle_are_compared_on_the_same_answers_where_they_are(tmp_path):
    """Of the batches that were trained on the reward fell; of the watched answers it rose."""
    rows = [{"step": 0, "proxy": 0.5, "oracle": 0.0}, {"step": 1, "reward": 9.0}]
    rows.append({"step": 2, "reward": 1.0, "proxy": 2.0, "oracle": -0.5})
    (warning,) = warnings(RunDirectory(tmp_path), None, None, rows)
    assert "the reward rose from 0.500 to 2 while the oracle fell from 0 to −0.500" in warning


def test_missed_evaluation_limits_and_given_warnings_are_told(tmp_path):
    missed = Finding(probe="b", value=2.0, n=9, limit="<= 1", passed=False)
    found = warnings(RunDirectory(tmp_path), audit(True, warnings=["few pairs"]), evaluation(missed), [])
    assert found == ["Limit missed by 1 of 1 evaluation figure.", "few pairs"]


def test_settings_are_flattened_in_order_and_not_rounded():
    config = {"seed": 1, "model": {"name": "m", "lora": {"rank": 8}, "tools": {}}, "rate": 1.23456789e-6, "on": True}
    assert flat(config) == [
        ("seed", "1"), ("model.name", "m"), ("model.lora.rank", "8"), ("model.tools", "none"),
        ("rate", "1.23456789e-06"), ("on", "true"),
    ]  # fmt: skip
    assert flat({"a": [1, None], "b": [{"x": 2}]}) == [("a", "1, none"), ("b.0.x", "2")]
    assert [title for title, _ in grouped(config)] == ["general", "model"]


def test_findings_without_value_are_read(tmp_path):
    path = write_json(tmp_path / "audit.json", {"findings": [Finding(probe="x", value=float("nan"), n=0)]})
    document = read_document(path)
    assert document is not None and document.findings[0].value != document.findings[0].value
    assert read_document(tmp_path / "absent.json") is None


def test_checkpoints_and_hidden_files_are_no_artifacts(tmp_path):
    run = RunDirectory(tmp_path)
    for name in ("audit.json", "checkpoints/1/x", ".lock", "reward/config.json", "report.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"abc")
    found = artifacts(run)
    assert [artifact.name for artifact in found] == ["audit.json", "reward/config.json"]
    # SHA-256 of "abc", FIPS 180-2, appendix B.1
    assert found[0].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
