"""Learning rates by hand."""

import math

import pytest

from assay.train.schedule import learning_rate


def rates(schedule: str, *, num: int = 10, warmup: float = 0.2) -> list[float]:
    return [learning_rate(step, num, peak=8.0, warmup=warmup, schedule=schedule) for step in range(num)]  # pyright: ignore[reportArgumentType]


def test_linear_rises_to_the_peak_and_falls_to_nothing():
    assert rates("linear") == pytest.approx([4, 8, 8, 7, 6, 5, 4, 3, 2, 1])
    assert learning_rate(10, 10, peak=8.0, warmup=0.2, schedule="linear") == 0


def test_cosine_is_at_half_its_peak_half_way_down():
    found = rates("cosine")
    assert found[:3] == pytest.approx([4, 8, 8])
    assert found[6] == pytest.approx(4)
    assert found[4] == pytest.approx(4 * (1 + math.sqrt(2) / 2))  # a quarter of the way: cos 45 degrees


def test_constant_stays():
    assert rates("constant") == pytest.approx([4, *[8] * 9])


def test_without_warmup_the_first_step_has_the_peak():
    assert rates("linear", num=4, warmup=0) == pytest.approx([8, 6, 4, 2])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_one_step_learns(schedule):
    assert rates(schedule, num=1, warmup=0.1) == [8]


def test_a_warmup_of_everything_never_divides_by_nothing():
    assert rates("linear", num=4, warmup=1) == pytest.approx([2, 4, 6, 8])
