"""Responses as a token MDP and as a bandit, the optimum under a KL in both, and the frontier of reward against KL."""

import math

import pytest
import torch

from assay.algorithms.online_dpo import OnlineDPO
from assay.algorithms.rloo import RLOO
from assay.lab.rollouts import TabularRollouts, world_of
from assay.lab.tabular import TabularModel
from assay.lab.world import World, policy_values, soft_values, states_before
from lab.training import training

SHAPES = [(3, 3), (2, 5), (4, 2), (5, 1)]
BETAS = [0.1, 0.6, 3.0]


def worlds(contexts=2):
    return [
        World.random(contexts=contexts, vocabulary=vocabulary, horizon=horizon, seed=seed)
        for seed, (vocabulary, horizon) in enumerate(SHAPES)
    ]


def after(world, values, rewards=None):
    """[C, S, V] what stands after each token of each state: states are numbered level by level, responses follow."""
    last = world.oracle if rewards is None else rewards
    return torch.cat([values[:, 1:], last], 1).unflatten(1, (-1, world.vocabulary))


def random_policy(world, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(world.reference.shape, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_every_state_has_one_way_in():
    """A token only appends: state s and token a lead to number V s + 1 + a and nothing else does."""
    for world in worlds():
        tokens, size = world.responses, world.vocabulary
        states = states_before(tokens, size)
        assert torch.equal(states[:, 1:], size * states[:, :-1] + 1 + tokens[:, :-1])
        ways = (
            torch.cat([states[:, :-1, None], tokens[:, :-1, None], states[:, 1:, None]], -1).flatten(0, 1).unique(dim=0)
        )
        assert ways[:, 2].tolist() == list(range(1, world.reference.shape[1]))


def test_every_prefix_shares_its_probability_among_its_tokens():
    """Carried forward state by state the probabilities of the responses are those of `sequence_logprobs`."""
    for world in worlds():
        policy = random_policy(world, 3)
        mass = torch.ones(world.num_contexts, 1, dtype=torch.float64)
        first = 0
        for length in range(world.horizon):
            at = slice(first, first + world.vocabulary**length)
            mass = (mass[..., None] * policy[:, at].exp()).flatten(1)
            assert torch.allclose(mass.sum(1), torch.ones(2, dtype=torch.float64), atol=1e-12)
            first += world.vocabulary**length
        assert torch.allclose(world.sequence_logprobs(policy).exp(), mass, atol=1e-14)


def test_soft_values_by_hand():
    """A uniform reference and rewards beta log 1, 3, 5, 7: (1 + 3) / 2 = 2, (5 + 7) / 2 = 6 and (2 + 6) / 2 = 4."""
    beta = 0.5
    rewards = beta * torch.tensor([[1.0, 3.0, 5.0, 7.0]], dtype=torch.float64).log()
    reference = torch.full((1, 3, 2), math.log(0.5), dtype=torch.float64)
    world = World(2, 2, torch.ones(1, dtype=torch.float64), reference, rewards)
    assert soft_values(world, beta)[0].tolist() == pytest.approx([beta * math.log(x) for x in (4, 2, 6)], abs=1e-14)


@pytest.mark.parametrize("beta", BETAS)
def test_the_bandits_optimum_is_the_token_mdps(beta):
    """V(start) = beta log Z; the product of pi_ref exp((V' - V) / beta) over tokens is pi_ref(o) exp(R / beta) / Z."""
    for world in worlds():
        values = soft_values(world, beta)
        assert torch.allclose(values[:, 0], beta * world.log_normaliser(beta), atol=1e-12)
        tokens = world.reference + (after(world, values) - values[..., None]) / beta
        assert torch.allclose(tokens.exp().sum(-1), torch.ones_like(values), atol=1e-12)
        assert torch.allclose(world.sequence_logprobs(tokens).exp(), world.optimum(beta), atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_a_tokens_log_ratio_is_its_soft_advantage(beta):
    """beta log pi* / pi_ref (a | s) = r + V' - V, pi* read off the distribution of whole responses."""
    for world in worlds():
        values = soft_values(world, beta)
        ratio = beta * (world.token_policy(world.optimum(beta)) - world.reference)
        assert torch.allclose(ratio, after(world, values) - values[..., None], rtol=0, atol=1e-10)


@pytest.mark.parametrize("beta", BETAS)
def test_the_optimums_own_values_are_the_soft_ones_and_nobodys_are_higher(beta):
    for world in worlds():
        best = soft_values(world, beta)
        star = world.token_policy(world.optimum(beta))
        assert torch.allclose(policy_values(world, star, beta), best, atol=1e-11)
        for seed in range(20):
            found = policy_values(world, random_policy(world, seed), beta)
            assert (found <= best + 1e-12).all() and (found < best - 1e-3).any()


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_a_policys_value_is_the_mean_of_what_can_follow(beta):
    """At each prefix: R less beta log pi / pi_ref of the tokens to come, over all its continuations."""
    for world in worlds():
        policy = random_policy(world, 1)
        states = states_before(world.responses, world.vocabulary)
        chosen = [table[:, states, world.responses] for table in (policy, world.reference)]
        for t in range(world.horizon):
            later = [table[..., t:].sum(-1) for table in chosen]
            gained = later[0].exp() * (world.oracle - beta * (later[0] - later[1]))
            found = torch.zeros_like(world.reference[..., 0]).index_add(1, states[:, t], gained)
            at = states[:, t].unique()
            assert torch.allclose(policy_values(world, policy, beta)[:, at], found[:, at], atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_what_chance_adds_in_between_is_no_longer_the_answers_own(known):
    """Control: token a, then a word e of chance, then b, rewards R(a, e, b). The first token must be chosen by the mean
    over e of what follows; beta log pi* / pi_ref of all tokens is R - V only where e is known beforehand."""
    generator = torch.Generator().manual_seed(7)
    beta, rewards = 0.4, torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    first, second = (
        torch.randn(*n, generator=generator, dtype=torch.float64).log_softmax(-1) for n in ((3,), (3, 2, 3))
    )
    chance = torch.tensor([1.0, 0.0] if known else [0.5, 0.5], dtype=torch.float64)
    later = beta * (second + rewards / beta).logsumexp(-1)  # [a, e]
    worth = later @ chance
    start = beta * (first + worth / beta).logsumexp(-1)
    ratio = (worth - start)[:, None, None] + rewards - later[..., None]  # of both tokens, beta log pi* / pi_ref
    residual = (ratio - (rewards - start))[:, chance > 0]
    assert float(residual.abs().max()) < 1e-12 if known else float(residual.abs().max()) > 0.01


def test_regret_is_a_difference_of_log_probabilities_under_any_other_policy():
    """J(pi*) - J(pi) = E_nu[beta log pi - beta log pi*] + E_pi[f] - E_nu[f], f = beta log pi / pi_ref - r.

    Source: Xie et al. 2024, arXiv:2405.21046, the regret decomposition behind its bonus.
    """
    beta = 0.3
    for seed in range(100):
        world = World.random(contexts=1, vocabulary=3, horizon=2, seed=seed)
        pi, nu = (world.sequence_logprobs(random_policy(world, s)) for s in (seed, seed + 1000))
        reference, star = world.reference_probs.log(), world.optimum(beta)
        f = beta * (pi - reference) - world.oracle
        lost = beta * world.log_normaliser(beta) - (world.value(pi.exp()) - beta * world.kl(pi.exp()))
        told = (nu.exp() * beta * (pi - star.log())).sum() + ((pi.exp() - nu.exp()) * f).sum()
        assert told.item() == pytest.approx(lost.item(), abs=1e-10)


def test_a_policy_that_never_says_something_has_finite_values():
    """Greedy: its log-probabilities are 0 and minus infinity."""
    world = World.random(contexts=2, vocabulary=3, horizon=3, seed=6)
    policy = torch.nn.functional.one_hot(world.reference.argmax(-1), 3).double().log()
    chances = world.sequence_logprobs(policy).exp()
    found = world.contexts @ policy_values(world, policy, 0.4)[:, 0]
    assert found.item() == pytest.approx((world.value(chances) - 0.4 * world.kl(chances)).item(), abs=1e-12)


def some_policies(world, num, generator):
    """Distributions over responses of every kind: near-even ones, peaked ones, ones that never say most responses."""
    found = torch.randn(num, *world.oracle.shape, generator=generator, dtype=torch.float64)
    found = (found * torch.logspace(-1, 1, num, dtype=torch.float64)[:, None, None]).softmax(-1)
    never = torch.rand(found.shape, generator=generator) < 0.6
    never[..., 0] = False
    found[::3] = found[::3].masked_fill(never[::3], 0.0)
    return found / found.sum(-1, keepdim=True)


@pytest.mark.parametrize("beta", BETAS)
def test_what_a_policy_loses_is_its_divergence_from_the_optimum(beta):
    """E R - beta KL(pi || pi_ref) = beta log Z - beta KL(pi || pi*), for a hundred policies of each world."""
    for world in worlds():
        best, star = beta * world.contexts @ world.log_normaliser(beta), world.optimum(beta)
        for policy in some_policies(world, 100, torch.Generator().manual_seed(2)):
            gained = world.value(policy) - beta * world.kl(policy)
            assert gained.item() == pytest.approx((best - beta * world.kl(policy, star)).item(), abs=1e-9)
            assert gained < best


@pytest.mark.parametrize("beta", BETAS)
def test_the_optimums_kl_is_what_it_gains_over_beta_less_log_z(beta):
    for world in worlds():
        star = world.optimum(beta)
        wanted = world.value(star) / beta - world.contexts @ world.log_normaliser(beta)
        assert world.kl(star).item() == pytest.approx(wanted.item(), abs=1e-10) and wanted > 1e-3


@pytest.mark.parametrize("beta", BETAS)
def test_the_kl_grows_with_the_variance_of_the_reward(beta):
    """d KL / d(1 / beta) = Var(R) / beta, by central differences; Var within a context, under the optimum."""
    for world in worlds():
        h = 1e-4 / beta
        ends = [world.kl(world.optimum(1 / (1 / beta + step))) for step in (h, -h)]
        star = world.optimum(beta)
        mean = (star * world.oracle).sum(-1, keepdim=True)
        variance = world.contexts @ (star * (world.oracle - mean) ** 2).sum(-1)
        assert ((ends[0] - ends[1]) / (2 * h)).item() == pytest.approx((variance / beta).item(), rel=1e-5)


def most_at(world, kl):
    """The highest reward at so many nats: the tilt's, its beta found by bisection (KL falls as beta rises)."""
    low, high = math.log(1e-3), math.log(1e4)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if world.kl(world.optimum(math.exp(middle))) > kl else (low, middle)
    return world.value(world.optimum(math.exp(low)))  # at a hair more than `kl`


def best_of(world, n):
    """[C, O] the response of highest reward among n of the reference's: F(o)^n - F(below o)^n."""
    order = world.oracle.argsort(-1)
    within = world.reference_probs.gather(1, order).cumsum(-1)
    power = torch.nn.functional.pad(within, (1, 0)) ** n
    return torch.zeros_like(within).scatter(1, order, power.diff(dim=-1))


def path(world, algorithm, seed):
    """The policies that sampled training passes through, every ten steps."""
    torch.manual_seed(seed)
    model, seen = TabularModel(world), []
    rollouts = TabularRollouts(model, num_prompts=32, num_answers=4, seed=seed)
    run = training(model, algorithm, rollouts, steps=120, lr=0.05, schedule="linear")
    run.run(lambda told: seen.append(model.probabilities) if int(told["step"]) % 10 == 0 else None)
    return seen


OPTIMISERS = [RLOO(kl_coef=0.3), RLOO(kl_coef=0.0), OnlineDPO(beta=0.3, label="soft")]


@pytest.mark.parametrize("algorithm", OPTIMISERS, ids=["rloo", "rloo without KL", "online dpo"])
def test_at_equal_kl_no_optimiser_is_above_the_tilt(algorithm):
    """Anywhere on its way; it ends where well over half is gained of what its KL can gain, so it does optimise."""
    for seed in range(2):
        world = World.random(contexts=2, vocabulary=3, horizon=3, seed=seed)
        start = world.value(world.reference_probs)
        found = path(world, algorithm, seed)
        most = [most_at(world, world.kl(policy)) for policy in found]
        assert all(world.value(policy) <= bound + 1e-9 for policy, bound in zip(found, most, strict=True))
        assert world.value(found[-1]) - start > 0.7 * (most[-1] - start) > 0.5


def test_best_of_n_stays_below_the_tilt_of_its_kl_too():
    """Which is log n - (n - 1) / n nats at most; it gains well over half of what that KL can gain."""
    for seed in range(5):
        world = World.random(contexts=1, vocabulary=3, horizon=3, seed=seed)
        start = world.value(world.reference_probs)
        for n in (2, 4, 16, 64):
            policy = best_of(world, n)
            assert policy.sum().item() == pytest.approx(1, abs=1e-12)
            kl, most = world.kl(policy), most_at(world, world.kl(policy))
            assert 0 < kl <= math.log(n) - (n - 1) / n
            assert 0.7 * (most - start) < world.value(policy) - start < most - start - 1e-9


def test_best_of_n_by_hand():
    """Half, a third, a sixth; the last is the best: 1 - (5/6)^2 = 11/36; the worst is chosen with (1/2)^2."""
    world = world_of(torch.tensor([3.0, 2.0, 1.0]).double() / 6, torch.tensor([0.0, 1.0, 2.0]).double())
    assert best_of(world, 2)[0].tolist() == pytest.approx([9 / 36, 16 / 36, 11 / 36])
