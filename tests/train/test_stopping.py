"""Limits: what passes them for long enough ends the run, what does so once does not."""

import json
from statistics import fmean

import pytest

from assay.settings import InputError
from assay.train.stopping import Stopping, StopSettings

EXACT = {"smoothing": 0.0}


def reasons(settings, rows):
    stopping = Stopping(settings)
    return [stopping.see(row) for row in rows]


def test_no_limit_never_stops():
    assert not StopSettings().any
    assert reasons(StopSettings(), [{"kl": 1e9, "oracle": -1e9}] * 3) == ["", "", ""]


def test_one_odd_batch_is_not_enough():
    """Hysteresis: the count begins again below the limit."""
    told = reasons(StopSettings(kl=5, **EXACT), [{"kl": x} for x in (6, 4, 6, 4, 6, 6)])
    assert told[:5] == [""] * 5 and told[5] == "kl is 6, its limit 5 (stop.kl)"


def test_smoothing_is_a_moving_mean():
    stopping = Stopping(StopSettings(kl=5, smoothing=0.75, patience=1))
    assert not stopping.see({"kl": 4.0}) and not stopping.see({"kl": 8.0})  # 0.75 * 4 + 0.25 * 8 = 5
    assert stopping.see({"kl": 8.0})  # 5.75


def test_the_oracle_may_lose_a_share_of_what_it_gained():
    """From 1 up to 3: with a share of 0.25 the limit is 3 - 0.25 * 2 = 2.5."""
    settings = StopSettings(oracle_drop=0.25, **EXACT)
    assert reasons(settings, [{"oracle": x} for x in (1, 3, 2.6, 2.6, 2.6)]) == [""] * 5
    told = reasons(settings, [{"oracle": x} for x in (1, 3, 2.4, 2.4)])
    assert told == ["", "", "", "oracle is 2.4, its limit 2.5 (stop.oracle_drop)"]


def test_steps_without_a_look_do_not_count():
    settings = StopSettings(oracle_drop=0.25, **EXACT)
    rows = [{"oracle": 1.0}, {"oracle": 3.0}, {"oracle": 2.0}, {}, {}, {}]
    assert reasons(settings, rows) == [""] * 6


@pytest.mark.parametrize(
    ("name", "limit", "measure", "values"),
    [
        ("entropy", 1.0, "entropy", (2.0, 0.5, 0.5)),
        ("length", 1.5, "length_mean", (20.0, 31.0, 31.0)),
        ("uncertainty", 2.0, "rewards/model_uncertainty/mean", (0.1, 0.21, 0.21)),
    ],
)
def test_the_other_limits(name, limit, measure, values):
    told = reasons(StopSettings(**{name: limit}, **EXACT), [{measure: value} for value in values])
    assert told[:2] == ["", ""] and told[2].endswith(f"(stop.{name})")


def test_a_batch_beyond_a_limit_is_suspicious_before_the_mean_is():
    """At smoothing 0.5 the mean of 0, 8 and 3 is 4 and 3.5 where the limit is 5; of 0, 12, 3 it is 6 and 4.5."""
    for values, seen in (((0.0, 8.0, 3.0), [False, True, False]), ((0.0, 12.0, 11.0), [False, True, True])):
        stopping, found = Stopping(StopSettings(kl=5)), []
        for value in values:
            stopping.see({"kl": value, "oracle": -value})
            stopping.see({"oracle": 0.0})  # no batch: what was seen of the last one holds
            found.append(stopping.suspicious)
        assert found == seen


def test_an_oracle_that_falls_is_nothing_suspicious_of_a_batch():
    stopping = Stopping(StopSettings(oracle_drop=0.1, kl=5, **EXACT))
    for look in (0.0, 1.0, 0.2):
        stopping.see({"oracle": look, "kl": 1.0})
    assert stopping.beyond["oracle_drop"] == 1 and not stopping.suspicious


@pytest.mark.parametrize("name", ["oracle_drop", "kl", "entropy", "length", "uncertainty"])
def test_a_limit_below_nothing_is_refused(name):
    with pytest.raises(InputError, match=f"stop.{name} must be 0, for none, or more; got -1"):
        StopSettings(**{name: -1.0})


def test_of_another_oracle_nothing_is_known():
    stopping = Stopping(StopSettings(oracle_drop=0.1, patience=1, **EXACT))
    for look in (900.0, 1000.0):
        stopping.see({"oracle": look}, [look + 5.0, look - 5.0])
    stopping.forget_oracle()
    assert [stopping.see({"oracle": look}) for look in (1.0, 2.0, 1.95)] == [""] * 3
    assert stopping.see({"oracle": 1.8})


def seen(settings, *looks):
    """Reasons after looks, each a list of the oracle's scores prompt by prompt."""
    stopping = Stopping(settings)
    return [stopping.see({"oracle": fmean(scores)}, scores) for scores in looks]


def test_a_fall_that_may_be_chance_is_none():
    """Both last looks lost half of what was gained: every prompt 0.5, or one of four 2, with an error of 0.5."""
    settings = StopSettings(oracle_drop=0.1, patience=1, **EXACT)
    base, best = [100.0, 0.0, -100.0, 7.0], [101.0, 1.0, -99.0, 8.0]
    told = seen(settings, base, best, [100.5, 0.5, -99.5, 7.5])
    assert told == ["", "", "oracle is 2.25, its limit 2.65 (stop.oracle_drop)"]
    assert seen(settings, base, best, [99.0, 1.0, -99.0, 8.0]) == [""] * 3
    told = seen(settings, base, best, [97.0, 1.0, -99.5, 7.5])  # 4, 0, 0.5, 0.5: 1.25, error 0.924
    assert told == [""] * 3
    told = seen(settings, base, best, [99.0, -1.0, -100.0, 7.0])  # 2, 2, 1, 1: 1.5, error 0.289
    assert told[2] == "oracle is 1.25, its limit 2.28 (stop.oracle_drop)"


def test_what_was_never_gained_can_be_lost():
    settings = StopSettings(oracle_drop=0.9, patience=1, **EXACT)
    assert seen(settings, [1.0, 2.0], [0.5, 1.4])[1] == "oracle is 0.95, its limit 1.42 (stop.oracle_drop)"


def test_smoothed_looks_are_compared_prompt_by_prompt():
    """At 0.5 the means are 0, 1 and 0.5: what two odd answers said in turn has half the weight, and half the error."""
    settings = StopSettings(oracle_drop=0.1, patience=1, smoothing=0.5)
    assert seen(settings, [0.0, 0.0], [2.0, 2.0], [0.0, 0.0])[2] == "oracle is 0.5, its limit 0.9 (stop.oracle_drop)"
    assert seen(settings, [0.0, 0.0], [2.0, 2.0], [-1.0, 1.0])[2] == ""  # falls 1 and 0, error 0.5


def test_it_goes_on_from_its_state():
    rows = [{"oracle": x, "kl": k} for x, k in ((1, 1), (3, 6), (2.4, 4), (2.4, 4))]
    settings = StopSettings(oracle_drop=0.25, kl=5, **EXACT)
    first, second = Stopping(settings), Stopping(settings)
    for row in rows[:3]:
        first.see(row)
    second.load_state_dict(first.state_dict())
    assert second.see(rows[3]) == first.see(rows[3]) != ""


def test_looks_go_on_from_their_state():
    settings = StopSettings(oracle_drop=0.1, patience=1)
    looks = [[0.0, 1.0], [3.0, 2.0], [2.0, 2.0], [1.0, 1.5], [0.0, 0.5]]
    whole = seen(settings, *looks)
    assert any(whole)
    for number in range(1, len(looks)):
        first, second = Stopping(settings), Stopping(settings)
        for scores in looks[:number]:
            first.see({"oracle": fmean(scores)}, scores)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [second.see({"oracle": fmean(scores)}, scores) for scores in looks[number:]] == whole[number:]
