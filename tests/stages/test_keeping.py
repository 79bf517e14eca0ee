"""Which policy is kept: the best look at the oracle of those that were within the limits when they sampled."""

from types import SimpleNamespace

import pytest
import torch

from assay.stages.keeping import Keeper
from assay.train.stopping import StopSettings

EXACT = {"smoothing": 0.0, "patience": 2}


class Run:
    """A training of one weight, which is the number of the step; its batches have `updates` steps each."""

    def __init__(self, settings, *, updates=1, oracle="one", state=None, step=0):
        self.places, self.step, self.stopped, self.updates = {}, step, False, updates
        optimizer = SimpleNamespace(masters=lambda: {"w": torch.tensor(float(self.step))}, restore=self.restore)
        self.learners = {"policy": SimpleNamespace(optimizer=optimizer)}
        self.keeper = Keeper(self, settings, oracle)
        if state is not None:
            self.keeper.load_state_dict(state)
        self.keeper.start()

    @property
    def buffer(self):
        done = (self.step - 1) % self.updates + 1 if self.step else 0
        return SimpleNamespace(num_done=done, empty=done in (0, self.updates))

    def restore(self, weights):
        self.restored = float(weights["w"])

    def look(self, oracle, scores=()):
        """Before the first step."""
        self.keeper.see(0, {"oracle": oracle}, scores)
        return self

    def go(self, *rows):
        for row in rows:
            if self.stopped:
                break
            self.step += 1
            self.keeper.see(self.step, row, row.get("scores", ()))
        return self

    def kept(self):
        notes = self.keeper.finish()
        assert notes["kept_step"] == self.restored
        return notes["kept_step"], notes["stopped"]


def kls(*values):
    return [{"kl": value} for value in values]


def test_a_batch_beyond_the_limit_is_not_kept_where_the_mean_still_is_within():
    """KL 0, 0.1, 0.7, 0.9 at the policies of steps 0 to 3: means 0, 0.05, 0.375, 0.6375."""
    run = Run(StopSettings(kl=0.5, patience=1)).go(*kls(0.0, 0.1, 0.7, 0.9))
    assert run.kept() == (1, "kl is 0.637, its limit 0.5 (stop.kl)")


def test_the_highest_look_is_kept():
    """At smoothing 0.5 the mean still rises from 5 to 5.5 while the oracle falls from 10: the peak is what is kept."""
    for smoothing in (0.0, 0.5):
        looks = [{"oracle": value} for value in (10.0, 6.0, 5.5, 1.0, 1.0, 1.0)]
        run = Run(StopSettings(oracle_drop=0.3, smoothing=smoothing)).look(0.0).go(*looks)
        assert run.kept()[0] == 1
        looks = [{"oracle": value} for value in (10.0, 6.0, 5.5, 11.0)]
        run = Run(StopSettings(oracle_drop=0.9, smoothing=smoothing)).look(0.0)
        assert [run.go(row).keeper.kept.step for row in looks] == [1, 1, 1, 4]
        assert run.go({}).keeper.kept.step == 4  # no look


def test_a_look_counts_only_if_its_policy_is_within_the_other_limits():
    """The oracle rises all along; the KL of a step is that of the policy before it, and step 2's is 0.7."""
    rows = [{"kl": kl, "oracle": oracle} for kl, oracle in ((0.0, 2.0), (0.3, 3.0), (0.7, 4.0), (0.9, 5.0))]
    run = Run(StopSettings(oracle_drop=0.5, kl=0.5, **EXACT)).look(1.0).go(*rows)
    assert run.kept() == (1, "kl is 0.9, its limit 0.5 (stop.kl)")


def test_a_look_on_the_way_through_a_batch_waits_for_the_next_one():
    """Two updates a batch: the KL of 0.1 at step 3 is that of the look at step 2."""
    settings = StopSettings(oracle_drop=0.5, kl=0.5, patience=1, smoothing=0.0)
    rows = [{"kl": 0.0}, {"kl": 0.2, "oracle": 2.0}, {"kl": 0.1}, {"kl": 3.0, "oracle": 9.0}, {"kl": 0.9}]
    assert Run(settings, updates=2).look(1.0).go(*rows).kept() == (2, "kl is 0.9, its limit 0.5 (stop.kl)")


@pytest.mark.parametrize("updates", [1, 4])
def test_what_a_look_says_of_each_prompt_counts_whichever_update_it_follows(updates):
    """A fall by 0.1 on the mean of two prompts is one where both fell, and chance where one fell by 0.4."""
    for last, stops in (([0.9, 0.9], True), ([0.6, 1.2], False)):
        rows = [{"oracle": sum(scores) / 2, "scores": scores} for scores in ([1.0, 1.0], last, last)]
        rows = [row for look in rows for row in [*[{}] * (updates - 1), look]]
        run = Run(StopSettings(oracle_drop=0.05, **EXACT), updates=updates).look(0.0, [0.0, 0.0]).go(*rows)
        assert run.stopped == stops and run.keeper.kept.look == 1.0


def test_it_goes_on_as_if_it_had_not_been_interrupted():
    settings = StopSettings(oracle_drop=0.3, kl=9.0, **EXACT)
    rows = [{"kl": 1.0, "oracle": value} for value in (3.0, 5.0, 2.0, 2.0)]
    whole = Run(settings).look(1.0).go(*rows)
    for step in range(1, len(rows)):
        first = Run(settings).look(1.0).go(*rows[:step])
        again = Run(settings, state=first.keeper.state_dict(), step=step).go(*rows[step:])
        assert again.kept() == whole.kept() == (2, "oracle is 2, its limit 3.8 (stop.oracle_drop)")


def test_another_oracle_begins_anew():
    """One that gave 1000 is followed by one that gives 15 and more: nothing was lost, and its own best is kept."""
    settings = StopSettings(oracle_drop=0.1, **EXACT)
    first = Run(settings).look(990.0).go({"oracle": 1000.0}, {"oracle": 950.0}, {"oracle": 950.0})
    assert first.stopped
    run = Run(settings, oracle="another", state=first.keeper.state_dict(), step=3)
    assert run.keeper.another and not run.stopped
    run.keeper.begin_again({"oracle": 15.0})
    run.go(*[{"oracle": value} for value in (16.0, 18.0, 17.0, 17.0)])
    assert run.kept()[0] == 5
    assert not Run(settings, state=first.keeper.state_dict(), step=3).keeper.another


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_another_oracle_says_nothing_of_other_limits(drop):
    """A run that its KL ended stays ended."""
    settings = StopSettings(oracle_drop=drop, kl=0.5, **EXACT)
    first = Run(settings).look(1.0).go(*[{"kl": 0.9, "oracle": 2.0}] * 2)
    again = Run(settings, oracle="another", state=first.keeper.state_dict(), step=2)
    assert again.stopped and again.kept() == first.kept() == (0, "kl is 0.9, its limit 0.5 (stop.kl)")
