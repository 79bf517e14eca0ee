"""Learning from preferences that one asks for: who gets stuck with what the reference already says, and who does not.

Source: Xie et al. 2024, arXiv:2405.21046, algorithm 1 and its proposition on Online DPO's failure.
"""

from typing import Any

import torch
from torch import Tensor

from assay.algorithms.online_dpo import OnlineDPO
from assay.engine.learner import Learner
from assay.lab.rollouts import drawn_from, rollouts
from assay.lab.tabular import TabularModel, batch_of
from assay.lab.world import World


def two_arms(beta: float) -> World:
    """The hard instance: the worse arm has all but exp(-1 / (8 beta)) of the reference; rewards 1/2 and 1."""
    rare = torch.exp(torch.tensor(-1 / (8 * beta), dtype=torch.float64))
    return _bandit(torch.stack([1 - rare, rare]), torch.tensor([0.5, 1.0], dtype=torch.float64))


def combination_lock(depth: int, rare: float, reward: float) -> World:
    """`depth` binary choices, each right with probability `rare` under the reference; all right are paid, else 0.

    A response is one token out of 2^depth: for a policy that is a table, how it is spelled makes no difference.
    """
    right = torch.tensor([bin(number).count("1") for number in range(2**depth)], dtype=torch.float64)
    return _bandit(rare**right * (1 - rare) ** (depth - right), reward * (right == depth).double())


def _bandit(reference: Tensor, rewards: Tensor) -> World:
    return World(len(rewards), 1, torch.ones(1, dtype=torch.float64), reference.log()[None, None], rewards[None])


@torch.random.fork_rng(devices=[])
def explore(
    world: World,
    algorithm: OnlineDPO,
    *,
    steps: int,
    seeds: int,
    v_max: float = 1.0,
    updates: int = 12,
    lr: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Regret of the policy before each step [steps, seeds], and the largest |log pi / pi_ref| there was.

    Each step asks for one comparison, then the policy becomes the minimum of the method's loss over all of them, among
    the policies within v_max / beta of the reference (projected Adam from where it stood; where nothing was learned it
    stays at the reference). Of a schedule the first alpha holds throughout. Regret: what is lost of E R - beta KL.
    `world` has one context and one token.
    """
    torch.manual_seed(seed)
    wide = World(
        world.vocabulary,
        1,
        torch.full((seeds,), 1 / seeds, dtype=torch.float64),
        world.reference.expand(seeds, -1, -1),
        world.oracle.expand(seeds, -1),
    )
    model, memory = TabularModel(wide, dtype=torch.float64), {}
    models: dict[str, Any] = {"policy": model, "reference": TabularModel(wide, dtype=torch.float64)}
    learners = {role: Learner(one) for role, one in models.items()}
    contexts, bound = torch.arange(seeds), v_max / algorithm.beta
    asked, regrets, furthest = torch.zeros(0, 4, dtype=torch.float64), [], torch.zeros(())
    for _ in range(steps):
        regrets.append(_regret(wide, model.probabilities, algorithm.beta))
        moved = (model.policy - wide.reference).abs().max()
        furthest = torch.maximum(furthest, moved)
        answers = [_drawn(model.policy)] if algorithm.draws else [_drawn(model.policy), _drawn(model.policy)]
        answers += [_drawn(drawn_from(name, model)) for name in algorithm.draws]
        batch = rollouts(model, contexts, torch.stack(answers, 1), wide.oracle, 2 - len(algorithm.draws))
        ready = algorithm.prepare(batch, learners, memory)
        new = torch.stack([contexts, *answers, ready.preference], 1).double()
        asked = torch.cat([asked, new])
        _minimise(model, algorithm, asked, bound, updates, lr)
    return torch.stack(regrets), furthest


def _drawn(policy: Tensor) -> Tensor:
    return torch.multinomial(policy[:, 0].exp(), 1).squeeze(1)


def _regret(world: World, policy: Tensor, beta: float) -> Tensor:
    """[C] what each context's policy loses against the best one."""
    logs = policy.clamp(min=1e-300).log() - world.reference_probs.log()
    return beta * world.log_normaliser(beta) - (policy * (world.oracle - beta * logs)).sum(-1)


def _minimise(model: TabularModel, algorithm: OnlineDPO, asked: Tensor, bound: float, updates: int, lr: float) -> None:
    """All comparisons (context, first, second, preference) [N, 4] into the policy; equal ones are counted once."""
    kinds, counts = torch.unique(asked, dim=0, return_counts=True)
    contexts, first, second = (column.long() for column in kinds[:, :3].T)
    pairs = torch.stack([first, second], 1).flatten()
    batch = batch_of(model.world, contexts.repeat_interleave(2), pairs, groups_of=2)
    reference = TabularModel(model.world, dtype=torch.float64)(batch, ("logprobs",)).logprobs.detach()
    batch = batch.fill(
        declared={"alpha": Tensor},
        preference=kinds[:, 3],
        ref_logprobs=reference,
        source=torch.tensor([0, 1 if algorithm.draws else 0]).repeat(len(kinds)),
        alpha=torch.full((2 * len(kinds),), float(getattr(algorithm, "alpha", (0.0,))[0]), dtype=torch.float64),
    )
    optimiser = torch.optim.Adam([model.logits], lr=lr)
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = lr * (1 - update / updates)
        values, _ = algorithm.loss(model(batch, ("logprobs",)), batch)
        (model.logits.grad,) = torch.autograd.grad((counts * values).sum(), model.logits)
        optimiser.step()
        with torch.no_grad():
            moved = model.logits - model.world.reference
            moved -= (moved.amax(-1, keepdim=True) + moved.amin(-1, keepdim=True)) / 2
            model.logits.copy_(model.world.reference + moved.clamp(-bound / 2, bound / 2))
