"""Ctrl-C and SIGTERM: what was computed is saved, a second signal stops at once."""

import signal

import pytest
import torch

from assay.train import interrupts
from assay.train.interrupts import Interrupts
from train.test_loop import training

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def as_the_command_line_has_it():
    """Also where the tests were started in the background of a script, where shells have SIGINT ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == [signal.default_int_handler] * 2


def signalled(run, place: str, step: int, *numbers: int) -> list[int]:
    """Send the signals while a step's batch is fetched, or after, in its update; the steps that were reported."""
    seen: list[int] = []
    owner, name = {"fetch": (run.batches, "next"), "update": (run, "_update")}[place]
    real = getattr(owner, name)

    def call_and_signal(*arguments):
        found = real(*arguments)
        for number in numbers if run.step + 1 == step else ():
            signal.raise_signal(number)
        return found

    setattr(owner, name, call_and_signal)
    with pytest.raises(KeyboardInterrupt):
        run.run(lambda row: seen.append(int(row["step"])))
    delattr(owner, name)
    return seen


@BOTH
@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize(("place", "finished"), [("fetch", 0), ("update", 1)])
def test_what_was_computed_is_saved_and_the_run_goes_on_from_it(tmp_path, step, number, place, finished, capfd):
    whole = training(tmp_path / "whole", every=50)
    whole.run(lambda _: None)
    done = step - 1 + finished
    assert signalled(training(tmp_path / "run", every=50), place, step, number) == [*range(1, done + 1)]
    assert (tmp_path / "run").exists() == (done > 0)  # before the first step there is nothing to save
    assert ("once more stops at once" in capfd.readouterr().err) == (place == "update")
    run, seen = training(tmp_path / "run", every=50), []
    assert run.resume() == (done > 0) and run.step == done
    run.run(lambda row: seen.append(row["step"]))
    assert seen == [*range(done + 1, 6)]
    ours, theirs = (r.learners["policy"].model.network.state_dict() for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@BOTH
def test_the_second_signal_stops_at_once(tmp_path, number):
    assert signalled(training(tmp_path), "update", 2, number, number) == [1]
    assert not training(tmp_path).resume()


@pytest.mark.parametrize("place", ["fetch", "update"])
def test_without_checkpoints_the_first_stops_at_once(tmp_path, place):
    assert signalled(training(tmp_path, every=0), place, 2, signal.SIGINT) == [1]
    assert not list(tmp_path.iterdir())


def test_what_a_reward_makes_of_the_signal_is_not_trained_on(tmp_path):
    """A bare `except` swallows it, and gives a number all the same."""
    run, seen = training(tmp_path), []
    fetch = run.batches.next

    def swallows():
        try:
            if run.step == 1:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        return fetch()

    run.batches.next = swallows
    with pytest.raises(KeyboardInterrupt):
        run.run(lambda row: seen.append(row["step"]))
    again = training(tmp_path)
    assert seen == [1] and again.resume() and (again.step, again.batches.state_dict()) == (1, {"main": 2})


def test_what_a_signal_came_into_is_asked_again():
    answers, found = [1.0, 2.0, 3.0], []
    with Interrupts(saving=True) as asked:
        found.append(asked.undisturbed(lambda: answers.pop(0)))
        found.append(asked.undisturbed(lambda: (len(answers) == 2 and signal.raise_signal(2)) or answers.pop(0)))
    assert found == [1.0, 3.0]


def test_who_reads_the_notice_may_have_gone(tmp_path, monkeypatch):
    """By the same Ctrl-C, as `tee`."""

    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr(interrupts.os, "write", gone)
    assert signalled(training(tmp_path), "update", 3, signal.SIGINT) == [1, 2, 3]
    assert training(tmp_path).resume()


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run, seen = training(tmp_path), []
        run.run(lambda row: seen.append(row["step"]) or signal.raise_signal(signal.SIGINT))
        assert seen == [1, 2, 3, 4, 5]
    finally:
        signal.signal(signal.SIGINT, before)
