"""A proxy that pays for length: without a KL it rises while the truth falls, and a limit ends the run in time."""

import pytest
import torch

from assay.algorithms.ppo import PPO, PPOMax
from assay.algorithms.rloo import RLOO
from assay.engine.learner import Learner
from assay.engine.optimizer import FlatAdamW
from assay.lab.rollouts import TabularRollouts
from assay.lab.tabular import TabularModel
from assay.lab.world import World, num_states, tokens_of
from assay.train.loop import CheckpointSettings, OptimiserSettings, Training
from assay.train.stopping import Stopping, StopSettings

STEPS, LOOK = 240, 2


def world_with_a_flaw():
    """Tokens: 0 plain, 1 good, 2 padding. The truth: good tokens, and padding only up to one; the proxy: any padding.

    The reference writes mostly plain tokens, so at first both rewards rise together.
    """
    tokens = tokens_of(torch.arange(3**4), 3, 4)
    good, padding = (tokens == 1).sum(-1).double(), (tokens == 2).sum(-1).double()
    truth = 0.5 * good + padding - 0.5 * padding**2
    plain = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64).log_softmax(-1)
    reference = plain.expand(1, num_states(3, 4), 3).clone()
    flawed = World(3, 4, torch.ones(1, dtype=torch.float64), reference, truth[None])
    return flawed, (0.5 * good + padding)[None], padding


def optimise(folder, algorithm, *, seed, stop=None):
    """Exact truth, proxy, padding and KL every few steps, and why and when it was stopped."""
    world, proxy, padding = world_with_a_flaw()
    torch.manual_seed(seed)
    model = TabularModel(world)
    learner = Learner(model, FlatAdamW(model.named_parameters(), lr=0.03))
    rollouts = TabularRollouts(model, num_prompts=8, num_answers=4, rewards=proxy, seed=seed)
    training = Training(
        algorithm,
        {"policy": learner, "value": learner, "reference": Learner(TabularModel(world))},
        rollouts,
        num_steps=STEPS,
        optimiser=OptimiserSettings(lr=0.03, warmup=0.0, schedule="constant", max_norm=10.0),
        checkpoints=CheckpointSettings(every=0),
        folder=folder,
        identity={},
    )
    seen, stopping, reason = [], Stopping(stop or StopSettings()), []

    def look():
        p = model.probabilities
        return {
            "oracle": float(world.value(p)),
            "proxy": float(world.value(p, proxy)),
            "padding": float(world.value(p, padding[None])),
            "kl": float(world.kl(p)),
        }

    def report(metrics):
        metrics = {key: value for key, value in metrics.items() if key != "kl"}
        if int(metrics["step"]) % LOOK == 0:
            seen.append(look())
            metrics |= {name: seen[-1][name] for name in ("oracle", "kl")}
        if stop is not None and not reason and (told := stopping.see(metrics)):
            reason.append((told, len(seen)))
            training.stopped = True

    seen.append(look())
    if stop is not None:
        stopping.see({"oracle": seen[0]["oracle"]})
    training.run(report)
    return {name: [row[name] for row in seen] for name in seen[0]}, reason


SEEDS = range(5)
COMMON = {"vf_coef": 1.0, "num_epochs": 1, "num_minibatches": 1}
METHODS = {"rloo": lambda beta: RLOO(kl_coef=beta), "ppo_max": lambda beta: PPOMax(kl_coef=beta, **COMMON)}


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.fixture(scope="module")
def free(method, tmp_path_factory):
    return [optimise(tmp_path_factory.mktemp("free"), method(0.0), seed=seed)[0] for seed in SEEDS]


def test_without_a_kl_the_proxy_rises_on_while_the_truth_falls(free):
    for seen in free:
        best = max(seen["oracle"])
        place, gained = seen["oracle"].index(best), best - seen["oracle"][0]
        assert gained > 0.1 and seen["oracle"][-1] < best - 0.5 * gained
        assert seen["proxy"][-1] > seen["proxy"][place] + 1 and seen["proxy"][place] > seen["proxy"][0] + 0.3
        assert seen["padding"][-1] > 2 * seen["padding"][0] and seen["kl"][-1] > 2


def test_a_limit_on_the_oracle_fires_before_a_fifth_of_the_gain_is_lost(method, free, tmp_path):
    """And the run so far is the run that was not stopped: looking changes nothing."""
    for seed, whole in zip(SEEDS, free, strict=True):
        seen, reason = optimise(tmp_path, method(0.0), seed=seed, stop=StopSettings(oracle_drop=0.05, smoothing=0.0))
        assert reason and "stop.oracle_drop" in reason[0][0]
        assert seen["oracle"] == whole["oracle"][: len(seen["oracle"])]
        best, first = max(seen["oracle"]), seen["oracle"][0]
        assert seen["oracle"][-1] > best - 0.2 * (best - first)
        assert best - first > 0.9 * (max(whole["oracle"]) - first)  # it did not stop at the first dip


def test_a_limit_on_the_kl_fires_in_time_without_an_oracle(method, free, tmp_path):
    for seed, whole in zip(SEEDS, free, strict=True):
        seen, reason = optimise(tmp_path, method(0.0), seed=seed, stop=StopSettings(kl=0.8, smoothing=0.0, patience=1))
        assert reason and "stop.kl" in reason[0][0]
        best, first = max(whole["oracle"]), whole["oracle"][0]
        assert seen["oracle"][-1] > best - 0.2 * (best - first)


def test_with_a_kl_the_truth_ends_at_least_as_high(method, free, tmp_path):
    for seed, whole in zip(SEEDS, free, strict=True):
        seen, _ = optimise(tmp_path, method(0.1), seed=seed)
        assert seen["oracle"][-1] >= whole["oracle"][-1] and seen["kl"][-1] < whole["kl"][-1]


def test_the_same_of_ppo(tmp_path):
    free, bound = (optimise(tmp_path, PPO(kl_coef=beta, **COMMON), seed=0)[0] for beta in (0.0, 0.8))
    assert free["oracle"][-1] < max(free["oracle"]) - 0.05 and free["proxy"][-1] > free["proxy"][0] + 1
    assert bound["oracle"][-1] >= free["oracle"][-1]
