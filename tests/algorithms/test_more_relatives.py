"""More of what tells methods from their relatives, by hand: clips, bonuses, a KL in the loss, drawn labels."""

import math

import pytest
import torch

from algorithms.by_hand import MOVED, PLAIN, answers, gradient, ready, t
from assay.algorithms.a2c import A2C
from assay.algorithms.grpo import GRPO
from assay.algorithms.online_dpo import OnlineDPO
from assay.algorithms.ppo import PPO, PPOMax
from assay.algorithms.reinforce_pp import REINFORCEPP
from assay.algorithms.rloo import RLOO
from assay.batch import ModelOutput


def test_reinforce_pp_clips_as_ppo_does():
    """Rewards 1 and 0, two tokens each: of 1, 1, 0, 0 the mean is 1/2, the deviation 1 / sqrt(3), so A = +-sqrt(3) / 2.

    Ratios 1.5 and 0.9 in the better answer: the first has no gradient left, the second's is -0.9 A. RLOO's advantages
    are +-1 and it clips nothing; a wider clip lets the first through. In the worse answer 0.7 is beyond, 1.5 is not.
    """
    a, batch = math.sqrt(3) / 2, answers([1.0, 0.0])
    clipped, wide = REINFORCEPP(**PLAIN), REINFORCEPP(**PLAIN, clip=0.6)
    assert gradient(clipped, ready(clipped, batch), MOVED).flatten().tolist() == pytest.approx([0, -0.9 * a, a, a])
    assert gradient(wide, ready(wide, batch), MOVED)[0].tolist() == pytest.approx([-1.5 * a, -0.9 * a])
    rloo = RLOO(**PLAIN, num_epochs=2)
    assert gradient(rloo, ready(rloo, batch), MOVED)[0].tolist() == pytest.approx([-1.5, -0.9])
    worse = t([[-1.0, -1.0], [-1.0 + math.log(0.7), -1.0 + math.log(1.5)]])
    assert gradient(clipped, ready(clipped, batch), worse)[1].tolist() == pytest.approx([0, 1.5 * a])


def test_grpo_as_it_comes_has_the_third_estimate_of_the_kl_in_its_loss():
    """u - 1 - log u with u = pi_ref / pi, at 0.04: its gradient by log pi is 0.04 (1 - u).

    Rewards 2 and 0: A = +-1 / sqrt(2), the KL off no reward. In the better answer the ratio 1.5 is clipped and keeps
    the KL's gradient alone, u = 2; the ratio 0.9 has both, u = 1/2. The other answer has u = 1 and u = 3.
    """
    algorithm = GRPO(num_epochs=2)
    ref = MOVED + t([[2.0, 0.5], [1.0, 3.0]]).log()
    batch = ready(algorithm, answers([2.0, 0.0]), ref=ref)
    a = 1 / (math.sqrt(2) + 1e-4)
    assert batch.advantages.flatten().tolist() == pytest.approx([a, a, -a, -a])
    wanted = [0.04 * (1 - 2), -0.9 * a + 0.04 * (1 - 0.5), a, a + 0.04 * (1 - 3)]
    assert gradient(algorithm, batch, MOVED).flatten().tolist() == pytest.approx(wanted, abs=1e-6)
    k2 = GRPO(num_epochs=2, kl_estimator="k2")  # 0.04 log pi / pi_ref
    assert gradient(k2, batch, MOVED)[0, 0].item() == pytest.approx(-0.04 * math.log(2))


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_entropy_is_paid_for_at_every_token_and_only_where_it_is_told(kind):
    """0.1 a nat off the loss, also of the token whose ratio PPO clips; what log-probabilities are taught stays."""
    common = {**PLAIN, "num_epochs": 2, "whiten_advantages": False, "lam": 1.0}
    paying, plain = kind(**common, entropy_coef=0.1), kind(**common)
    batch = ready(plain, answers([1.0, 0.0]), values=torch.zeros(2, 2))
    values, taught = [], []
    for algorithm in (paying, plain):
        logprobs, entropy = MOVED.clone().requires_grad_(), t([[2.0, 3.0], [0.5, 0.0]]).requires_grad_()
        term = algorithm.losses()[0]
        loss, _ = term.fn(ModelOutput(logprobs=logprobs, entropy=entropy), batch)
        values.append(loss.detach())
        taught.append(torch.autograd.grad(loss.sum(), (logprobs, entropy), materialize_grads=True))
        assert term.reads == (("logprobs", "entropy") if algorithm is paying else ("logprobs",))
    assert (values[1] - values[0]).flatten().tolist() == pytest.approx([0.2, 0.3, 0.05, 0.0], abs=1e-6)
    assert torch.equal(taught[0][0], taught[1][0])
    assert taught[0][1].flatten().tolist() == pytest.approx([-0.1] * 4) and not taught[1][1].any()


def test_ppo_max_cuts_rewards_on_both_sides():
    """-4, 0 and 4 have the mean 0 and the deviation 4: -1, 0 and 1, cut to -0.8, 0 and 0.8. Uncut they stay."""
    batch, critic = answers([-4.0, 0.0, 4.0], width=1), torch.zeros(3, 1)
    cut = ready(PPOMax(track_kl=False, kl_coef=0.0, lam=1.0), batch, values=critic)
    assert cut.returns[:, 0].tolist() == pytest.approx([-0.8, 0.0, 0.8])
    uncut = ready(PPOMax(track_kl=False, kl_coef=0.0, lam=1.0, reward_clip=0.0), batch, values=critic)
    assert uncut.returns[:, 0].tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_rewards_that_are_scaled_keep_their_mean():
    """1 and 3: deviation sqrt(2). Then 10 and 10: of all four the mean is 6 and the squares 25 + 9 + 16 + 16 = 66, so
    the deviation is sqrt(22)."""
    algorithm, memory, critic = PPO(**PLAIN, lam=1.0, reward_norm="scale"), {}, torch.zeros(2, 1)
    first = ready(algorithm, answers([1.0, 3.0], width=1), values=critic, memory=memory)
    assert first.returns[:, 0].tolist() == pytest.approx([1 / math.sqrt(2), 3 / math.sqrt(2)])
    then = ready(algorithm, answers([10.0, 10.0], width=1), values=critic, memory=memory)
    assert then.returns[:, 0].tolist() == pytest.approx([10 / math.sqrt(22)] * 2)


def test_advantages_are_cut_after_they_are_whitened():
    """0, 0, 0, 10: mean 2.5, deviation 5, so -0.5, -0.5, -0.5, 1.5, cut at 1. The critic's returns are not cut."""
    batch, critic = answers([0.0, 0.0, 0.0, 10.0], width=1), torch.zeros(4, 1)
    found = ready(PPO(**PLAIN, lam=1.0, advantage_clip=1.0), batch, values=critic)
    assert found.advantages[:, 0].tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.0])
    assert found.returns[:, 0].tolist() == [0, 0, 0, 10]
    raw = PPO(**PLAIN, lam=1.0, whiten_advantages=False, advantage_clip=2.0)
    found = ready(raw, answers([-3.0, 1.0], width=1), values=critic[:2])
    assert found.advantages[:, 0].tolist() == [-2, 1]


@pytest.mark.parametrize("gap", [-2.0, -0.5, 0.25, 1.0])
def test_labels_are_drawn_with_bradley_terrys_probability(gap):
    """Of 2,000 pairs the share that prefers the first is within four standard errors of it."""
    num, chance = 2000, 1 / (1 + math.exp(-gap))
    found = OnlineDPO().credit(answers([1.0 + gap, 1.0] * num, width=1), {}, {}).preference
    assert len(found) == num and set(found.tolist()) == {0.0, 1.0}
    assert abs(found.mean().item() - chance) < 4 * math.sqrt(chance * (1 - chance) / num)


@pytest.mark.parametrize("label", ["bernoulli", "argmax", "soft"])
def test_conversations_are_equal_only_where_the_other_side_said_the_same(label):
    """The policy wrote the same first and last token; what an environment said between is another in the first pair."""
    batch = answers([9.0, -9.0, 9.0, -9.0], width=3, groups=[0, 0, 1, 1])
    ids = t([[1, 2, 3], [1, 4, 3], [1, 2, 3], [1, 2, 3]]).long()
    batch = batch.fill(ids=ids, mask=t([[1, 0, 1]] * 4).bool())
    assert OnlineDPO(label=label).credit(batch, {}, {}).preference.tolist() == pytest.approx([1.0, 0.5], abs=1e-6)


@pytest.mark.parametrize("label", ["bernoulli", "argmax", "soft"])
def test_a_shift_by_prompt_changes_no_label(label):
    """A hundred prompts with a shift each, two pairs a prompt; the same dice. What is shifted within a pair does."""
    groups = [prompt for prompt in range(100) for _ in range(4)]
    rewards = torch.randint(-8, 9, (400,)) / 4  # and whole shifts: nothing is rounded
    shift = torch.randint(-50, 51, (100,)).float()

    def labels(told):
        torch.manual_seed(11)
        batch = answers(told.tolist(), width=1, groups=groups)
        return OnlineDPO(label=label).credit(batch, {}, {}).preference

    found = labels(rewards)
    assert torch.equal(labels(rewards + shift[groups]), found)
    assert not torch.equal(labels(rewards + t([0.0, 1.0] * 200)), found) and len(set(found.tolist())) > 1
