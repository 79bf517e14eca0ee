"""The loop: which learners it trains, when it saves, what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from assay.algorithms import DPO, SFT
from assay.batch import Term
from assay.engine.learner import Lagging, Learner
from assay.engine.model import Model
from assay.engine.optimizer import FlatAdamW
from assay.records import reply
from assay.settings import InputError
from assay.tokens.chat import Encoder, collate
from assay.train.batches import Offline, Shuffled
from assay.train.loop import CheckpointSettings, OptimiserSettings, Training
from tiny import PROMPTS, random_network, tokenizer

WORDS = ("Yes.", "No.", "Perhaps, if it rains.", "Never again.")


def learner(*, heads: tuple[str, ...] = ()) -> Learner:
    torch.manual_seed(3)
    model = Model(random_network(LlamaForCausalLM), {name: nn.Linear(32, 1) for name in heads})
    return Learner(model, FlatAdamW(model.named_parameters(), lr=0.01))


def data(size: int = 2) -> Offline:
    words = Encoder(tokenizer())
    items = [words.completion(prompt, reply(text)) for prompt, text in zip(PROMPTS, WORDS)]
    return Offline({"main": (Shuffled(items, size, seed=0), lambda rows: collate([[row] for row in rows], 0))})


def training(
    folder: Path,
    algorithm=None,
    learners=None,
    *,
    num_steps: int = 5,
    every: int = 2,
    critic_alone: int = 0,
    **identity,
) -> Training:
    return Training(
        algorithm or SFT(),
        learners or {"policy": learner()},
        data(),
        num_steps=num_steps,
        optimiser=OptimiserSettings(lr=0.01, warmup=0.0, max_norm=0.5),
        checkpoints=CheckpointSettings(every=every),
        folder=folder,
        identity=identity,
        critic_alone=critic_alone,
    )


def test_it_counts_reports_and_saves(tmp_path):
    run, seen, saved = training(tmp_path), [], []
    save = run.save
    run.save = lambda: saved.append(run.step) or save()
    run.run(seen.append)
    assert [row["step"] for row in seen] == [1, 2, 3, 4, 5]
    assert [row["lr"] for row in seen] == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])
    assert saved == [2, 4]  # the last state is the caller's to save
    assert seen[-1]["nll"] < seen[0]["nll"]
    assert all(row["grad_norm"] > 0 and row["seconds"] > 0 for row in seen)


def test_every_0_saves_nothing(tmp_path):
    training(tmp_path, every=0).run(lambda _: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["batches", "report"])
def test_an_error_outside_of_the_update_does_not_cost_what_was_trained(tmp_path, place):
    """As by a reward or an oracle behind an address. The run goes on to the same weights, and tells every step once."""
    whole, run = training(tmp_path / "whole"), training(tmp_path / "run", every=50)
    whole.run(lambda _: None)
    seen, fetch = [], run.batches.next

    def fails(row=None):
        if run.step == 3:
            raise InputError("no answer")
        return fetch() if row is None else seen.append(row["step"])

    report = fails if place == "report" else lambda row: seen.append(row["step"])
    if place == "batches":
        run.batches.next = fails
    with pytest.raises(InputError):
        run.run(report)
    again = training(tmp_path / "run", every=50)
    assert again.resume() and again.step == 3 and again.told == len(seen) == (2 if place == "report" else 3)
    again.run(lambda row: seen.append(row["step"]))
    assert seen == [1, 2, 3, 4, 5]
    ours, theirs = (r.learners["policy"].model.network.state_dict() for r in (again, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_until_stops_early(tmp_path):
    run = training(tmp_path)
    run.run(lambda _: None, until=3)
    assert run.step == 3
    run.run(lambda _: None, until=99)
    assert run.step == 5


def test_a_finished_run_trains_no_further(tmp_path):
    run = training(tmp_path)
    run.run(lambda _: None)
    run.save()
    again = training(tmp_path)
    assert again.resume() and again.step == 5
    again.run(lambda row: pytest.fail(f"trained again: {row}"))


def test_a_fresh_folder_is_nothing_to_resume(tmp_path):
    assert training(tmp_path).resume() is False


def test_differences_are_named_by_their_place(tmp_path):
    run = training(tmp_path, config={"lr": 1, "data": {"path": "a"}}, seed=0)
    run.save()
    other = training(tmp_path, config={"lr": 2, "data": {"path": "b"}, "new": True}, seed=0)
    with pytest.raises(InputError) as error:
        other.resume()
    for part in ("config.lr: 1 -> 2", "config.data.path: a -> b", "config.new: None -> True", "another run directory"):
        assert part in str(error.value)
    assert "seed" not in str(error.value) and other.step == 0


def test_a_reference_learns_nothing(tmp_path):
    frozen = Learner(Model(random_network(LlamaForCausalLM)).requires_grad_(False))
    before = {name: p.clone() for name, p in frozen.model.named_parameters()}
    run = training(tmp_path, DPO(), {"policy": learner(), "reference": frozen})
    run.run(lambda _: None)
    assert all(torch.equal(p, before[name]) for name, p in frozen.model.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in run.learners["policy"].model.named_parameters())


class TwoLosses:
    """Imitation, and a value head that learns how long answers are; by one learner or two."""

    def prepare(self, batch, learners, memory):
        return batch

    def losses(self):
        return (*SFT().losses(), Term("value", self.value, "token"))

    def value(self, out, batch):
        return (out.values - batch.lengths[:, None]) ** 2, {
            "squared": (out.values.detach() - batch.lengths[:, None]) ** 2
        }


@pytest.mark.parametrize("shared", [True, False], ids=["one body", "two models"])
def test_every_learner_steps_once_a_step(shared, tmp_path):
    policy = learner(heads=("value",) if shared else ())
    value = policy if shared else learner(heads=("value",))
    steps = []
    for worker in {id(policy): policy, id(value): value}.values():
        step = worker.step
        worker.step = lambda *, lr, max_norm, step=step, who=id(worker): (
            steps.append(who) or step(lr=lr, max_norm=max_norm)
        )
    run, seen = training(tmp_path, TwoLosses(), {"policy": policy, "value": value}, num_steps=3), []
    run.run(seen.append)
    assert len(steps) == (3 if shared else 6) and set(steps) == {id(policy), id(value)}
    assert seen[-1]["squared"] < seen[0]["squared"]


def test_two_learners_are_saved_and_restored_apart(tmp_path):
    def pair():
        return {"policy": learner(), "value": learner(heads=("value",))}

    whole, first, second = pair(), pair(), pair()
    training(tmp_path / "whole", TwoLosses(), whole, num_steps=4, every=0).run(lambda _: None)
    stopped = training(tmp_path / "cut", TwoLosses(), first, num_steps=4, every=2)
    stopped.run(lambda _: None, until=3)
    resumed = training(tmp_path / "cut", TwoLosses(), second, num_steps=4, every=2)
    assert resumed.resume() and resumed.step == 2
    resumed.run(lambda _: None)
    for role in ("policy", "value"):
        expected = dict(whole[role].model.named_parameters())
        assert all(torch.equal(p, expected[name]) for name, p in second[role].model.named_parameters())


def weights(worker: Learner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in worker.model.named_parameters()}


def moved(before: dict[str, torch.Tensor], worker: Learner) -> bool:
    return any(not torch.equal(p, before[name]) for name, p in worker.model.named_parameters())


@pytest.mark.parametrize("alone", [0, 1, 3])
def test_the_critic_is_trained_alone_first(alone, tmp_path):
    """In these steps the policy's weights and moments stay as they are; from the next one on both learn."""
    learners = {"policy": learner(), "value": learner(heads=("value",))}
    run, seen = training(tmp_path, TwoLosses(), learners, every=0, critic_alone=alone), []
    for step in range(1, 6):
        before = {role: weights(worker) for role, worker in learners.items()}
        run.run(seen.append, until=step)
        assert moved(before["value"], learners["value"])
        assert moved(before["policy"], learners["policy"]) == (step > alone)
    assert [row["step"] for row in seen] == [1, 2, 3, 4, 5]
    assert ["nll" in row for row in seen] == [step > alone for step in range(1, 6)]
    assert all("squared" in row and row["grad_norm"] > 0 for row in seen)
    taken = {role: float(worker.optimizer.state_dict()["0.step"]) for role, worker in learners.items()}
    assert taken == {"policy": 5 - alone, "value": 5}


def test_the_policys_schedule_begins_when_it_does(tmp_path):
    """Down from the peak over its own four steps of seven; the critic's, which is told while it is alone, over all."""
    learners, seen = {"policy": learner(), "value": learner(heads=("value",))}, []
    training(tmp_path, TwoLosses(), learners, num_steps=7, critic_alone=3).run(seen.append)
    alone, together = [1, 6 / 7, 5 / 7], [1, 3 / 4, 2 / 4, 1 / 4]
    assert [row["lr"] for row in seen] == pytest.approx([0.01 * share for share in (*alone, *together)])


def test_only_the_policy_warms_up_after_a_critic_that_was_alone(tmp_path):
    """A warm-up of half: over two of the policy's four steps; the critic, told while alone, begins at the peak."""
    learners, seen = {"policy": learner(), "value": learner(heads=("value",))}, []
    run = training(tmp_path, TwoLosses(), learners, num_steps=6, critic_alone=2)
    run.optimiser = replace(run.optimiser, schedule="constant", warmup=0.5)
    run.run(seen.append)
    assert [row["lr"] for row in seen] == pytest.approx([0.01, 0.01, 0.005, 0.01, 0.01, 0.01])


def test_the_policys_first_batch_is_a_new_one(tmp_path):
    """Four updates a batch, three of them the critic's: the fourth is left out, its credit is an older critic's."""

    class FourUpdates(TwoLosses):
        num_epochs = 4

    learners, filled = {"policy": learner(), "value": learner(heads=("value",))}, []
    run = training(tmp_path, FourUpdates(), learners, num_steps=8, critic_alone=3)
    fill = run.buffer.fill
    run.buffer.fill = lambda streams: filled.append(run.step) or fill(streams)
    run.run(lambda _: None)
    assert filled == [0, 3, 7]


def test_a_batch_that_says_nothing_moves_nothing(tmp_path):
    """A gradient of 0 after others: the moments go no further, nor does weight decay."""
    worker = learner()
    training(tmp_path, SFT(), {"policy": worker}, every=0).run(lambda _: None)
    before, state = weights(worker), {name: value.clone() for name, value in worker.optimizer.state_dict().items()}
    assert worker.step(lr=0.1, max_norm=1.0) == 0
    assert not moved(before, worker)
    assert all(torch.equal(value, state[name]) for name, value in worker.optimizer.state_dict().items())


def test_the_critic_alone_learns_what_it_would_beside_a_policy(tmp_path):
    """Two models: what one learns is no matter of the other's."""
    first, second = ({"policy": learner(), "value": learner(heads=("value",))} for _ in range(2))
    training(tmp_path, TwoLosses(), first, every=0, critic_alone=5).run(lambda _: None)
    training(tmp_path, TwoLosses(), second, every=0).run(lambda _: None)
    assert not moved(weights(first["value"]), second["value"])
    assert moved(weights(first["policy"]), second["policy"])


def test_a_resumed_critic_is_alone_for_as_long(tmp_path):
    def pair():
        return {"policy": learner(), "value": learner(heads=("value",))}

    first, second = pair(), pair()
    training(tmp_path, TwoLosses(), first, every=2, critic_alone=3).run(lambda _: None, until=2)
    resumed = training(tmp_path, TwoLosses(), second, every=0, critic_alone=3)
    assert resumed.resume() and resumed.step == 2
    start = weights(second["policy"])
    resumed.run(lambda _: None, until=3)
    assert not moved(start, second["policy"])
    resumed.run(lambda _: None, until=4)
    assert moved(start, second["policy"])


def test_a_moving_reference_follows_after_the_step_and_is_resumed(tmp_path):
    """Every second step a half of the way; after step 3 it stands where step 2 put it, in a resumed run as well."""

    def pair():
        policy = learner()
        return {"policy": policy, "reference": Lagging(policy, every=2, share=0.5)}

    whole, first, second = pair(), pair(), pair()
    start, steps = weights(whole["reference"]), []
    run = training(tmp_path / "whole", DPO(), whole, every=0)
    for step in (1, 2, 3, 4):
        run.run(lambda _: None, until=step)
        steps.append({role: weights(worker) for role, worker in whole.items()})
    assert not moved(start, first["reference"])
    one, two, three, four = steps
    assert all(torch.equal(p, start[name]) for name, p in one["reference"].items())
    for name, p in two["reference"].items():
        assert torch.allclose(p, (start[name] + two["policy"][name]) / 2, atol=1e-7)
        assert torch.equal(p, three["reference"][name])
    assert any(not torch.equal(p, start[name]) for name, p in two["reference"].items())
    stopped = training(tmp_path / "cut", DPO(), first, every=3)
    stopped.run(lambda _: None, until=3)
    resumed = training(tmp_path / "cut", DPO(), second, every=0)
    assert resumed.resume() and not moved(three["reference"], second["reference"])
    resumed.run(lambda _: None, until=4)
    assert not moved(four["reference"], second["reference"]) and not moved(four["policy"], second["policy"])


def test_a_critic_whose_gradient_is_not_finite_stops_the_policy_too(tmp_path, monkeypatch):
    """Neither moves: what the error says, that nothing was updated, holds of both."""
    learners = {"policy": learner(), "value": learner(heads=("value",))}
    run = training(tmp_path, TwoLosses(), learners, every=0)
    before = {role: weights(worker) for role, worker in learners.items()}
    monkeypatch.setattr(learners["value"].optimizer, "gradient_norm", lambda: float("nan"))
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        run.run(lambda _: None)
    assert not any(moved(before[role], worker) for role, worker in learners.items())
