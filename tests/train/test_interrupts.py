"""Ctrl-C and SIGTERM: a step is finished and saved, a second signal stops at once."""

import signal

import pytest
import torch

from train.test_loop import training

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def as_the_command_line_has_it():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGTERM, before)


def signalled(run, step: int, *numbers: int) -> list[int]:
    """Send the signals while a step's batch is fetched; the steps that were reported before the run ended."""
    seen: list[int] = []
    fetch = run.batches.next

    def fetch_and_signal():
        for number in numbers if run.step + 1 == step else ():
            signal.raise_signal(number)
        return fetch()

    run.batches.next = fetch_and_signal
    with pytest.raises(KeyboardInterrupt):
        run.run(lambda row: seen.append(int(row["step"])))
    return seen


@BOTH
@pytest.mark.parametrize("step", [3, 5], ids=["midway", "last"])
def test_the_step_is_finished_and_saved_and_the_run_goes_on_from_it(tmp_path, step, number, capfd):
    whole = training(tmp_path / "whole", every=50)
    whole.run(lambda _: None)
    assert signalled(training(tmp_path / "run", every=50), step, number) == [*range(1, step + 1)]
    assert "once more stops at once" in capfd.readouterr().err
    run = training(tmp_path / "run", every=50)
    assert run.resume() and run.step == step
    run.run(lambda _: None)
    ours, theirs = (r.learners["policy"].model.network.state_dict() for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@BOTH
def test_the_second_signal_stops_at_once(tmp_path, number):
    assert signalled(training(tmp_path), 2, number, number) == [1]
    assert not training(tmp_path).resume()


def test_without_checkpoints_the_first_stops_at_once(tmp_path):
    assert signalled(training(tmp_path, every=0), 2, signal.SIGINT) == [1]
    assert not list(tmp_path.iterdir())


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run, seen = training(tmp_path), []
        run.run(lambda row: seen.append(row["step"]) or signal.raise_signal(signal.SIGINT))
        assert seen == [1, 2, 3, 4, 5]
    finally:
        signal.signal(signal.SIGINT, before)
