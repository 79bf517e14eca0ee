"""What tells each method from its nearest relative, worked out by hand: an alias could not pass."""

import math

import pytest
import torch

from algorithms.by_hand import MOVED, PLAIN, TWO_STEPS, answers, gradient, ready, t
from assay.algorithms.a2c import A2C
from assay.algorithms.apa import APA
from assay.algorithms.grpo import GRPO
from assay.algorithms.online_dpo import OnlineDPO
from assay.algorithms.p3o import P3O
from assay.algorithms.ppo import PPO, PPOMax
from assay.algorithms.reinforce import REINFORCE
from assay.algorithms.reinforce_pp import REINFORCEPP
from assay.algorithms.remax import ReMax
from assay.algorithms.rloo import RLOO
from assay.algorithms.sppo import SPPO
from assay.algorithms.xpo import XPO
from assay.batch import ModelOutput
from assay.engine.weights import item_weights


def test_the_moving_baseline_is_the_mean_of_earlier_batches():
    algorithm, memory = REINFORCE(**PLAIN, decay=0.5), {}
    seen = [ready(algorithm, answers([r, r]), memory=memory).advantages[0, 0].item() for r in (4.0, 8.0, 2.0)]
    # no baseline; then 4; then (0.25 * 4 + 0.5 * 8) / 0.75 = 20 / 3
    assert seen == pytest.approx([4.0, 4.0, 2 - 20 / 3])
    assert ready(REINFORCE(**PLAIN, baseline="none"), answers([4.0, 4.0]), memory={}).advantages[0, 0] == 4


def test_reinforce_credits_tokens_with_what_comes_after():
    """Dense rewards 1, 2, 3: to go 6, 5, 3. RLOO gives every token the whole."""
    dense = answers([6.0, 0.0], width=3, token_rewards=t([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    assert ready(REINFORCE(**PLAIN, baseline="none"), dense).advantages[0].tolist() == [6, 5, 3]
    assert ready(RLOO(**PLAIN), dense).advantages[0].tolist() == [6, 6, 6]


def test_reinforce_pp_normalises_over_all_prompts():
    """Two prompts, rewards 1, 1 and 5, 5: RLOO and GRPO see nothing; mean 3, deviation 4 / sqrt(3) over all."""
    batch = answers([1.0, 1.0, 5.0, 5.0], width=1, groups=[0, 0, 1, 1])
    assert ready(RLOO(**PLAIN), batch).advantages.abs().max() == 0
    assert ready(GRPO(**PLAIN), batch).advantages.abs().max() == 0
    found = ready(REINFORCEPP(**PLAIN), batch).advantages[:, 0]
    assert found.tolist() == pytest.approx([-math.sqrt(3) / 2] * 2 + [math.sqrt(3) / 2] * 2, rel=1e-5)
    assert ready(REINFORCEPP(**PLAIN, baseline="group"), batch).advantages.abs().max() == 0


def test_reinforce_pp_charges_each_token_its_own_kl():
    """KL 0.5 at the first token, 0 at the second; rewards 0: to go -0.5, 0. RLOO charges both tokens 0.5."""
    ref = t([[-1.5, -1.0], [-1.0, -1.0]])
    told = REINFORCEPP(kl_coef=1.0, sampler_clip=0.0)
    found = ready(told, answers([0.0, 0.0]), ref=ref).advantages
    assert found[0, 0] < found[0, 1] == found[1, 0] == found[1, 1]
    whole = ready(RLOO(kl_coef=1.0), answers([0.0, 0.0]), ref=ref).advantages
    assert whole.tolist() == [[-0.5, -0.5], [0.5, 0.5]]


def test_remax_takes_off_the_greedy_answer():
    """Rewards 3 and 1, greedy 2.5: advantages 0.5 and -1.5, and the greedy answer itself is not trained on."""
    batch = ready(ReMax(**PLAIN), answers([3.0, 1.0, 2.5], source=t([0, 0, 1])))
    assert batch.num_rows == 2 and batch.advantages.tolist() == [[0.5, 0.5], [-1.5, -1.5]]


def test_grpo_divides_by_the_groups_deviation():
    """Rewards 0 and 2: mean 1, deviation sqrt(2). Dr. GRPO divides by nothing."""
    batch = answers([0.0, 2.0], width=1)
    assert ready(GRPO(**PLAIN), batch).advantages[:, 0].tolist() == pytest.approx([-0.7071, 0.7071], abs=1e-3)
    assert ready(GRPO(**PLAIN, scale="none"), batch).advantages[:, 0].tolist() == [-1.0, 1.0]
    both = answers([0.0, 2.0, 10.0, 10.0], width=1, groups=[0, 0, 1, 1])
    found = ready(GRPO(**PLAIN, scale="batch"), both).advantages[:, 0]
    assert found[1].item() == pytest.approx(1 / t([0.0, 2.0, 10.0, 10.0]).std().item(), rel=1e-4)


def test_gspo_clips_whole_answers():
    """Rewards 2 and 0. GRPO clips the token whose ratio is 1.5 and keeps the other; GSPO's ratio of the answer is
    sqrt(1.35) = 1.16: both tokens are kept, or with a bound of 0.1 both clipped."""
    batch = answers([2.0, 0.0])
    token = GRPO(**TWO_STEPS, average="sequence")
    found = gradient(token, ready(token, batch), MOVED)[0]
    assert found.tolist() == pytest.approx([0.0, -0.9])
    loose, tight = (GRPO(**TWO_STEPS, ratio="sequence", clip_low=c, clip_high=c) for c in (0.2, 0.1))
    ratio = math.sqrt(1.35)
    assert gradient(loose, ready(loose, batch), MOVED)[0].tolist() == pytest.approx([-ratio, -ratio])
    assert gradient(tight, ready(tight, batch), MOVED)[0].tolist() == [0.0, 0.0]


def test_cispo_keeps_the_gradient_of_what_ppo_clips():
    """The weight of the token at 1.5 is cut to 1.28 and its gradient stays."""
    cispo = GRPO(**TWO_STEPS, objective="weights", clip_low=1.0, clip_high=0.28)
    found = gradient(cispo, ready(cispo, answers([2.0, 0.0])), MOVED)[0]
    assert found.tolist() == pytest.approx([-1.28, -0.9])


def test_dapo_clips_higher_above_than_below():
    wide = GRPO(**TWO_STEPS, clip_low=0.2, clip_high=0.6)
    found = gradient(wide, ready(wide, answers([2.0, 0.0])), MOVED)[0]
    assert found.tolist() == pytest.approx([-1.5, -0.9])
    worse = gradient(wide, ready(wide, answers([0.0, 2.0])), t([[-1.0 + math.log(0.7)] * 2, [-1.0, -1.0]]))[0]
    assert worse.tolist() == [0.0, 0.0]  # below 0.8 a bad answer is not pushed further


def test_averages_over_tokens_differ_with_the_lengths():
    """Answers of 1 and 3 tokens, one advantage each: a token's weight in the loss, by hand."""
    batch = answers([1.0, 0.0], width=3, lengths=[1, 3])
    shares = {a: item_weights(batch, GRPO(average=a).reduction) for a in ("sequence", "token", "sum")}
    assert shares["sequence"].tolist() == [[0.5, 0, 0], pytest.approx([1 / 6] * 3)]
    assert shares["token"].tolist() == [[0.25, 0, 0], [0.25] * 3]
    assert shares["sum"].tolist() == [0.5, 0.5]  # of the sum over each answer's tokens


def test_ppo_clips_and_actor_critic_does_not():
    values = torch.zeros(2, 2)
    common = {**PLAIN, "num_epochs": 2, "whiten_advantages": False, "lam": 1.0}
    batch = answers([1.0, 0.0])
    plain, clipped = A2C(**common), PPO(**common)
    assert gradient(plain, ready(plain, batch, values=values), MOVED)[0].tolist() == pytest.approx([-1.5, -0.9])
    assert gradient(clipped, ready(clipped, batch, values=values), MOVED)[0].tolist() == pytest.approx([0.0, -0.9])


def test_actor_critic_takes_off_the_value_and_ppo_bounds_its_step():
    """V = 0.25 and 0.5, gamma 1, lambda 1, reward 1: advantages 0.75 and 0.5."""
    values = t([[0.25, 0.5], [0.0, 0.0]])
    algorithm = PPO(**PLAIN, lam=1.0, whiten_advantages=False, value_clip=0.2)
    batch = ready(algorithm, answers([1.0, 0.0]), values=values)
    assert batch.advantages[0].tolist() == [0.75, 0.5] and batch.returns[0].tolist() == [1.0, 1.0]
    moved = t([[0.75, 0.5], [0.0, 0.0]]).requires_grad_()
    loss, _ = algorithm.value_loss(ModelOutput(values=moved), batch)
    # the first value went 0.5 up, beyond 0.2: max((1 - 0.75)^2, (1 - 0.45)^2) / 2, and no gradient
    assert loss[0].tolist() == pytest.approx([0.55**2 / 2, 0.125])
    loss.sum().backward()
    assert moved.grad[0].tolist() == pytest.approx([0.0, -0.5])


def test_ppo_max_normalises_rewards_over_history_and_cuts_them():
    """First batch 0 and 2: mean 1, deviation sqrt(2): -0.707 and 0.707. Then 10, 10: pooled mean 5.5, cut at 0.8."""
    algorithm, memory = PPOMax(track_kl=False, kl_coef=0.0, lam=1.0), {}
    first = ready(algorithm, answers([0.0, 2.0], width=1), values=torch.zeros(2, 1), memory=memory)
    assert first.returns[:, 0].tolist() == pytest.approx([-0.7071, 0.7071], abs=1e-4)
    then = ready(algorithm, answers([10.0, 10.0], width=1), values=torch.zeros(2, 1), memory=memory)
    assert memory["reward_moments"][1] == 5.5 and then.returns[:, 0].tolist() == pytest.approx([0.8, 0.8])
    plain = ready(PPO(**PLAIN, lam=1.0), answers([10.0, 10.0], width=1), values=torch.zeros(2, 1))
    assert plain.returns[:, 0].tolist() == [10.0, 10.0]


def test_apa_regresses_where_ppo_follows_a_ratio():
    """(log pi - log pi_init - A / lambda)^2, A = 1, lambda = 0.5, log-ratio 0.3: 2 (0.3 - 2), at any distance."""
    algorithm = APA(temperature=0.5, num_epochs=2, lam=1.0, sampler_clip=0.0)
    batch = ready(algorithm, answers([1.0, 1.0], width=1), values=torch.zeros(2, 1))
    found = gradient(algorithm, batch, t([[-0.7], [3.0]]))
    assert found[:, 0].tolist() == pytest.approx([2 * (0.3 - 2), 2 * (4.0 - 2)])


def test_apa_pays_for_entropy_where_it_is_told_to():
    batch = ready(APA(), answers([1.0, 1.0], width=1), values=torch.zeros(2, 1))
    out = ModelOutput(logprobs=t([[-0.7], [-0.5]]), entropy=t([[2.0], [3.0]]))
    with_bonus, without = (APA(entropy_coef=c).losses()[0].fn(out, batch)[0] for c in (0.1, 0.0))
    assert (without - with_bonus)[:, 0].tolist() == pytest.approx([0.2, 0.3])


def test_p3o_clips_apart_or_together():
    """Rewards 2 and 0, ratios 1.5 and 1.5: apart the first is beyond 1.2, together they cancel in what is clipped.

    An answer weighs by the other's ratio, 1.5, and together they weigh 2.25.
    """
    both = torch.full((2, 1), -1.0 + math.log(1.5))
    apart, joint = (P3O(kl_coef=0.0, track_kl=False, clipping=c, num_epochs=2) for c in ("separate", "joint"))
    batch = answers([2.0, 0.0], width=1)
    assert gradient(apart, ready(apart, batch), both)[:, 0].tolist() == pytest.approx([0.0, 2.25])
    assert gradient(joint, ready(joint, batch), both)[:, 0].tolist() == pytest.approx([-2.25, 2.25])
    further = t([[-1.0 + math.log(1.5)], [-1.0]])
    assert gradient(joint, ready(joint, batch), further)[:, 0].tolist() == [0.0, 0.0]


def test_sppo_has_a_target_and_stops_there():
    """Rewards differ by ln 3: win rates 3/4 and 1/4; targets +-0.25 / beta, beta 0.5: +-0.5. RLOO goes on."""
    batch = answers([math.log(3.0), 0.0], width=1)
    sppo, rloo = SPPO(beta=0.5, track_kl=False), RLOO(**PLAIN, num_epochs=2)
    there = t([[-0.5], [-1.5]])
    assert gradient(sppo, ready(sppo, batch), there)[:, 0].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    start = gradient(sppo, ready(sppo, batch), torch.full((2, 1), -1.0))[:, 0]
    assert start.tolist() == pytest.approx([-1.0, 1.0])
    assert gradient(rloo, ready(rloo, batch), there)[:, 0].abs().min() > 0.5


def test_xpos_bonus_is_alpha_on_the_references_answer_alone():
    """A tie, and a policy that is the reference: Online DPO has no gradient; the bonus has alpha, and none on the
    policy's own answer, as a KL on both would."""
    batch = answers([0.0, 0.0], ref_logprobs=torch.full((2, 2), -1.0), preference=t([0.5]), source=t([0, 1]))
    here = torch.full((2, 2), -1.0)
    alpha = batch.fill(declared={"alpha": torch.Tensor}, alpha=t([0.25, 0.25]))
    assert gradient(OnlineDPO(), batch, here).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert gradient(XPO(), alpha, here).tolist() == [[0.0, 0.0], [0.25, 0.25]]


def test_xpos_bonus_counts_where_both_wrote_the_same():
    """Two prompts, both answers equal at the first, which is a tie: the bonus is a mean over both all the same."""
    batch = answers([0.0, 0.0, 1.0, 1.0], width=1, groups=[0, 0, 1, 1], source=t([0, 1, 0, 1]))
    batch = batch.fill(ids=t([[7], [7], [5], [6]]), ref_logprobs=batch.sampler_logprobs)
    algorithm = XPO(alpha=(0.5,))
    told = algorithm.credit(batch, {}, {})
    logprobs = batch.sampler_logprobs.clone().requires_grad_()
    loss, _ = algorithm.loss(ModelOutput(logprobs=logprobs), told)
    (found,) = torch.autograd.grad((item_weights(told, algorithm.reduction) * loss).sum(), logprobs)
    assert found[:, 0].tolist() == [0.0, 0.25, 0.0, 0.25]


@pytest.mark.parametrize("sign", [1, -1], ids=["above", "below"])
@pytest.mark.parametrize("first_is_better", [1.0, 0.0])
def test_what_is_beyond_xpos_bound_counts_as_the_bound_and_is_pulled_back(first_is_better, sign):
    """V_max / beta = 1 and log-ratios of 2.5 and 0: the margin is that of 1 and 0, the first's gradient what it is
    beyond, whatever is preferred."""
    batch = answers([1.0, 0.0], width=1, ref_logprobs=torch.full((2, 1), -3.0), source=t([0, 1]))
    batch = batch.fill(preference=t([first_is_better]))
    batch = batch.fill(declared={"alpha": torch.Tensor}, alpha=torch.zeros(2))
    found = gradient(XPO(beta=0.5, v_max=0.5), batch, t([[-3.0 + sign * 2.5], [-3.0]]))
    second = 0.5 * (first_is_better - 1 / (1 + math.exp(-0.5 * sign)))  # beta (y - sigma(beta margin))
    assert found[:, 0].tolist() == pytest.approx([sign * 1.5, second])


def test_xpos_schedule_holds_each_alpha_for_its_batches():
    algorithm, memory = XPO(alpha=(0.3, 0.2, 0.1), alpha_batches=2), {}
    batch = answers([1.0, 0.0], source=t([0, 1]))
    seen = [algorithm.credit(batch, {}, memory).alpha[0].item() for _ in range(7)]
    assert seen == pytest.approx([0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1])


def test_a_shift_of_rewards_changes_no_label_of_online_dpo():
    for label in ("argmax", "soft"):
        one, other = (
            OnlineDPO(label=label).credit(answers([0.5 + s, 1.5 + s, 1.0 + s, 1.0 + s]), {}, {}) for s in (0.0, 4.0)
        )
        assert torch.equal(one.preference, other.preference) and one.preference[1] == 0.5


def test_equal_answers_are_a_tie_whatever_their_rewards():
    """Two pairs, the second of equal answers that were paid 3 and 0: it says nothing, and pulls nowhere."""
    batch = answers([1.0, 0.0, 3.0, 0.0], width=1, ref_logprobs=torch.full((4, 1), -1.0))
    batch = batch.fill(ids=t([[5], [6], [7], [7]]))
    for label in ("argmax", "bernoulli", "soft"):
        told = OnlineDPO(label=label).credit(batch, {}, {})
        assert told.preference[1] == 0.5 and told.preference[0] != 0.5
        assert gradient(OnlineDPO(), told, batch.sampler_logprobs)[2:].tolist() == [[0.0], [0.0]]
    term = OnlineDPO().losses()[1]  # what is watched is of all four answers
    out = ModelOutput(logprobs=batch.sampler_logprobs, entropy=t([[2.0], [2.0], [4.0], [4.0]]))
    _, metrics = term.fn(out, batch)
    assert float((item_weights(batch, term.reduction, own=term.own) * metrics["entropy"]).sum()) == 3.0


def test_the_kl_that_is_watched_is_that_of_the_policy_that_sampled():
    """In every update on a batch: -1 - (-3) a token by the sampler, whatever the policy says by now."""
    batch = answers([1.0, 0.0], ref_logprobs=torch.full((2, 2), -3.0), old_logprobs=torch.full((2, 2), -1.0))
    term = PPO().losses()[1]
    for now in (-1.0, -0.2):
        out = ModelOutput(logprobs=torch.full((2, 2), now), entropy=torch.zeros(2, 2))
        assert term.fn(out, batch)[1]["kl"].tolist() == [4.0, 4.0]


def test_a_tie_on_either_side_is_half_right():
    batch = answers([1.0] * 6, width=1, ref_logprobs=torch.full((6, 1), -3.0), preference=t([0.0, 1.0, 0.5]))
    out = ModelOutput(logprobs=t([[-3.0], [-3.0], [-2.0], [-3.0], [-2.0], [-3.0]]))
    _, metrics = OnlineDPO().loss(out, batch)
    assert metrics["rewards/accuracies"].tolist() == [0.5, 1.0, 0.5]


def test_what_is_watched_is_the_policys_own_whatever_is_masked():
    """Answers of the policy and of the reference: entropies 2 and 3 of its own two, whichever of the others count."""
    batch = answers([0.0] * 4, width=1, groups=[0, 0, 1, 1], source=t([0, 1, 0, 1]))
    term = XPO().losses()[1]
    out = ModelOutput(logprobs=batch.sampler_logprobs, entropy=t([[2.0], [9.0], [3.0], [9.0]]))
    for masked in ([], [1], [1, 3]):
        some = batch.fill(mask=batch.mask & ~t([[row in masked] for row in range(4)]))
        _, metrics = term.fn(out, some)
        assert float((item_weights(some, term.reduction, own=term.own) * metrics["entropy"]).sum()) == 2.5


def test_online_ipo_stops_at_its_margin():
    """(ratio difference - 1 / (2 beta))^2, beta 0.25: no gradient at 2, at 0 -2 * 2."""
    batch = answers([1.0, 0.0], width=1, ref_logprobs=torch.full((2, 1), -3.0), preference=t([1.0]))
    ipo = OnlineDPO(objective="ipo", beta=0.25)
    assert gradient(ipo, batch, t([[-1.0], [-3.0]]))[:, 0].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert gradient(ipo, batch, t([[-3.0], [-3.0]]))[:, 0].tolist() == pytest.approx([-4.0, 4.0])


def test_samplers_that_were_not_the_policy_are_corrected_up_to_a_bound():
    """Drawn at -1, the policy says -0.5 and 1: weights e^0.5 and the bound 2."""
    policy = t([[-0.5], [1.0]])
    algorithm = RLOO(kl_coef=0.0, track_kl=False, sampler_clip=2.0)
    batch = ready(algorithm, answers([1.0, 0.0], width=1))
    found = gradient(algorithm, batch, policy)[:, 0]
    assert found.tolist() == pytest.approx([-math.exp(0.5), 2.0])
