"""Credit against numbers worked out by hand and direct sums; padding and tokens that do not count among them."""

import math

import pytest
import torch

from assay.losses.credit import (
    at_last_token,
    gae,
    group_deviation,
    group_mean,
    leave_one_out,
    redistribute,
    rewards_to_go,
    shaping,
    spread_evenly,
    whiten,
    win_rates,
)

t = torch.tensor
NAN, INF = float("nan"), float("inf")


def ragged(seed, *, holes=False, rows=7, width=9):
    """Rewards, values and a mask in fp64: full, empty and short rows; what is no part of a response is NaN.

    With holes tokens in the middle and at either end do not count. What is paid there is a number, what was valued not.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width, (rows,), generator=generator)
    lengths[0], lengths[1] = width, 0
    within = torch.arange(width) < lengths[:, None]
    mask = within & (torch.rand(rows, width, generator=generator) < (0.6 if holes else 1.0))
    rewards, values = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards.masked_fill(~within, NAN), values.masked_fill(~mask, NAN), mask


def paid_to(rewards, mask):
    """Of each row the places that count, and what is paid from each of them up to the next, padding left out."""
    for row in range(len(mask)):
        places = mask[row].nonzero()[:, 0].tolist()
        paid = [rewards[row, a:b].nansum() for a, b in zip(places, [*places[1:], mask.shape[1]])]
        yield row, places, paid


def direct(rewards, values, mask, gamma, lam):
    """sum_l (gamma lam)^l delta_(i + l), written out."""
    found = torch.zeros_like(rewards)
    for row, places, paid in paid_to(rewards, mask):
        worth = [*(values[row, place] for place in places), 0.0]
        delta = [paid[i] + gamma * worth[i + 1] - worth[i] for i in range(len(places))]
        for i, place in enumerate(places):
            found[row, place] = sum((gamma * lam) ** k * later for k, later in enumerate(delta[i:]))
    return found


def discounted(rewards, mask, gamma):
    """sum_k gamma^k of what is paid at the k-th counted token from here on, written out."""
    found = torch.zeros_like(rewards)
    for row, places, paid in paid_to(rewards, mask):
        for i, place in enumerate(places):
            found[row, place] = sum(gamma**k * later for k, later in enumerate(paid[i:]))
    return found


# group 7: 1, 4, 7; group 3: 2, 6; group 5: 9 alone
REWARDS, GROUP = t([1.0, 2.0, 4.0, 6.0, 7.0, 9.0]), t([7, 3, 7, 3, 7, 5])


def test_group_mean_by_hand():
    assert group_mean(REWARDS, GROUP).tolist() == [4.0, 4.0, 4.0, 4.0, 4.0, 9.0]


def test_group_deviation_by_hand():
    # (9 + 0 + 9) / 2 = 9; (4 + 4) / 1 = 8; nobody to differ from
    found = group_deviation(REWARDS, GROUP).tolist()
    assert found == pytest.approx([3.0, math.sqrt(8), 3.0, math.sqrt(8), 3.0, 0.0], abs=1e-6)


def test_equal_rewards_deviate_by_nothing():
    assert group_deviation(t([0.5, 0.5, 0.5, -2.0]), t([0, 0, 0, 1])).tolist() == [0.0] * 4


def test_the_groups_mean_is_a_share_of_leaving_one_out():
    """r - mean = (G - 1) / G (r - mean of the siblings): 2/3 of it in a group of 3, 1/2 of 2, all of nothing of 1."""
    share = t([2 / 3, 1 / 2, 2 / 3, 1 / 2, 2 / 3, 0.0])
    assert torch.allclose(REWARDS - group_mean(REWARDS, GROUP), share * leave_one_out(REWARDS, GROUP), atol=1e-6)


def test_a_reward_lands_on_the_last_real_token():
    mask = t([[True, True, False, False], [True] * 4, [True, False, True, False], [False] * 4])
    found = at_last_token(t([2.0, -3.0, 5.0, 7.0]), mask)
    assert found.tolist() == [[0, 2, 0, 0], [0, 0, 0, -3], [0, 0, 5, 0], [0, 0, 0, 0]]


def test_rewards_to_go_by_hand():
    # from behind: 4; 2 + 0.5 * 4 = 4; 1 + 0.5 * 4 = 3
    mask = t([[True, True, True, False]])
    assert rewards_to_go(t([[1.0, 2.0, 4.0, NAN]]), mask, 0.5).tolist() == [[3.0, 4.0, 4.0, 0.0]]


def test_what_is_paid_at_a_hole_belongs_to_the_counted_token_before():
    """It is not discounted on the way, and time does not pass at a hole; before the first one it is nobody's."""
    rewards, mask = t([[9.0, 1.0, 5.0, 3.0, 2.0, 6.0]]), t([[False, True, False, False, True, False]])
    # 2 + 6 = 8 at the last counted one; 1 + 5 + 3 + 0.5 * 8 = 13 at the first
    assert rewards_to_go(rewards, mask, 0.5).tolist() == [[0.0, 13.0, 0.0, 0.0, 8.0, 0.0]]


def test_gae_by_hand():
    """Two tokens of one response; gamma = 1/2, lambda = 1/2."""
    # deltas: 1 + 0.5 * 4 - 2 = 1 and 6 + 0 - 4 = 2; A_0 = 1 + 0.25 * 2
    found = gae(t([[1.0, 6.0]]), t([[2.0, 4.0]]), t([[True, True]]), gamma=0.5, lam=0.5)
    assert found.tolist() == [[1.5, 2.0]]


@pytest.mark.parametrize("holes", [False, True], ids=["ragged", "holes"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.5, 1.0), (0.8, 0.0)])
def test_gae_is_the_direct_sum(gamma, lam, holes):
    for seed in range(20):
        rewards, values, mask = ragged(seed, holes=holes)
        found, wanted = gae(rewards, values, mask, gamma=gamma, lam=lam), direct(rewards, values, mask, gamma, lam)
        assert (found - wanted).abs().max() < 1e-12  # NaN would be neither
        assert (found[mask] != 0).all() and (found[~mask] == 0).all()


@pytest.mark.parametrize("holes", [False, True], ids=["ragged", "holes"])
@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_lambda_one_is_the_return_minus_the_value(gamma, holes):
    for seed in range(5):
        rewards, values, mask = ragged(seed, holes=holes)
        wanted = discounted(rewards, mask, gamma)
        assert (rewards_to_go(rewards, mask, gamma) - wanted).abs().max() < 1e-12
        found = gae(rewards, values, mask, gamma=gamma, lam=1.0)
        assert (found - (wanted - torch.where(mask, values, 0.0))).abs().max() < 1e-12


def test_lambda_zero_is_delta():
    rewards, values, mask = t([[1.0, 2.0, 3.0]]), t([[4.0, 5.0, 7.0]]), t([[True, True, True]])
    # 1 + 0.5 * 5 - 4; 2 + 0.5 * 7 - 5; 3 + 0 - 7
    assert gae(rewards, values, mask, gamma=0.5, lam=0.0).tolist() == [[-0.5, 0.5, -4.0]]


@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
def test_padding_changes_nothing(garbage):
    """Wider padding, and whatever is no number in it; a value there may be a number too."""
    rewards, values, mask = ragged(3)
    expected = gae(rewards.nan_to_num(), values.nan_to_num(), mask, gamma=0.9, lam=0.8)
    wide = torch.nn.functional.pad
    dirty = wide(rewards.masked_fill(~mask, garbage), (0, 3), value=garbage)
    for worth in (garbage, 1e6):
        state = wide(values.masked_fill(~mask, worth), (0, 3), value=worth)
        found = gae(dirty, state, wide(mask, (0, 3)), gamma=0.9, lam=0.8)
        assert torch.equal(found[:, :9], expected) and (found[:, 9:] == 0).all()


def test_a_reward_of_nan_where_it_counts_shows():
    """Otherwise a broken reward model trains on as if it had paid nothing; elsewhere NaN stops the step."""
    found = gae(t([[1.0, NAN]]), torch.zeros(1, 2), t([[True, True]]), gamma=1.0, lam=1.0)
    assert found.isnan().any()


@pytest.mark.parametrize("value", [5.3, 1000.1, -0.7, 1e-3])
@pytest.mark.parametrize("size", [2, 3, 6, 7])
def test_equal_rewards_have_no_advantage_at_all(value, size):
    """In fp32 too, where a sum of them is rounded."""
    rewards, group = torch.full((size,), value), torch.zeros(size, dtype=torch.long)
    assert (leave_one_out(rewards, group) == 0).all()
    assert (rewards - group_mean(rewards, group) == 0).all()
    assert (group_deviation(rewards, group) == 0).all()


def test_whiten_by_hand():
    # of 1, 2, 3: mean 2, deviation 1
    values, mask = t([[1.0, 3.0, 99.0], [2.0, NAN, INF]]), t([[True, True, False], [True, False, False]])
    assert whiten(values, mask).flatten().tolist() == pytest.approx([-1, 1, 0, 0, 0, 0], abs=1e-6)


def test_whiten_does_not_see_padding():
    """Neither what it holds nor how wide it is."""
    _, values, mask = ragged(5, holes=True)
    expected = whiten(values, mask)
    counted = expected[mask]
    assert counted.std().item() == pytest.approx(1, abs=1e-7)
    assert counted.mean().abs() < 1e-12
    for more in (0, 1, 30):
        for garbage in (NAN, -INF, 0.0, 1e9):
            wide = torch.nn.functional.pad(values.masked_fill(~mask, garbage), (0, more), value=garbage)
            found = whiten(wide, torch.nn.functional.pad(mask, (0, more)))
            assert torch.equal(found[:, :9], expected) and (found[:, 9:] == 0).all()


def test_a_value_alone_is_its_own_mean():
    values = t([[3.0, NAN], [NAN, NAN]])
    assert whiten(values, t([[True, False], [False, False]])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert whiten(values, torch.zeros(2, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("values", [[0.0, 1e-7, -1e-7], [1.0, 1.0000001, 1.0], [5e6, 5e6 + 0.5, 5e6]])
def test_rounding_is_not_whitened_to_full_size(values):
    """As what a KL between equal policies leaves of rewards that are all 0."""
    found = whiten(t([values]), torch.ones(1, 3, dtype=torch.bool))
    assert found.abs().max() <= max(values) - min(values)


def test_small_values_are_whitened_as_others():
    found = whiten(t([[1e-4, 2e-4, 3e-4]]), torch.ones(1, 3, dtype=torch.bool))
    assert found.flatten().tolist() == pytest.approx([-1, 0, 1], abs=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.7])
def test_equal_values_whiten_to_nothing(value):
    """All answers got one reward: there is nothing to learn, and no direction to take from rounding."""
    found = whiten(torch.full((1, 7), value), torch.ones(1, 7, dtype=torch.bool))
    assert found.abs().max() < 1e-3


@pytest.mark.parametrize("holes", [False, True], ids=["ragged", "holes"])
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_shaping_telescopes_to_the_first_state(gamma, holes):
    """sum_i gamma^i (gamma Phi_(i + 1) - Phi_i) = -Phi_0, whatever lies between."""
    for seed in range(5):
        _, potentials, mask = ragged(seed, holes=holes)
        paid = shaping(potentials, mask, gamma)
        power = torch.where(mask, gamma ** (mask.cumsum(1) - 1).double(), 0.0)
        first = [p[m][:1].sum().item() for p, m in zip(potentials, mask)]  # 0 of a row without tokens
        assert (power * paid).sum(1).tolist() == pytest.approx([-value for value in first], abs=1e-12)
        assert (paid[mask] != 0).all() and (paid[~mask] == 0).all()


def test_shaping_leaves_differences_between_responses():
    """Reward to go loses the potential of where one stands, which answers to one prompt share at their first token."""
    rewards, potentials, mask = ragged(2)
    rows = mask.any(1)
    rewards, potentials, mask = rewards[rows], potentials[rows], mask[rows]
    potentials[:, 0] = 0.7
    plain = rewards_to_go(rewards, mask, 1.0)
    shaped = rewards_to_go(torch.where(mask, rewards, 0.0) + shaping(potentials, mask, 1.0), mask, 1.0)
    assert (shaped - (plain - torch.where(mask, potentials, 0.0))).abs().max() < 1e-12
    between = shaped[:, 0, None] - shaped[:, 0]
    assert torch.allclose(between, plain[:, 0, None] - plain[:, 0], atol=1e-12) and between.abs().max() > 1


def test_spread_evenly_by_hand():
    mask = t([[True, False, True, True], [True, False, False, False], [False] * 4])
    assert spread_evenly(t([6.0, -2.0, 5.0]), mask).tolist() == [[2, 0, 2, 2], [-2, 0, 0, 0], [0, 0, 0, 0]]


def test_redistribute_by_hand():
    # 5 - (1 + 2) = 2 is left over, 1 a token; -1 - 3 = -4, -2 a token
    attributions, mask = t([[1.0, 2.0, NAN], [3.0, INF, 0.0]]), t([[True, True, False], [True, False, True]])
    assert redistribute(t([5.0, -1.0]), attributions, mask).tolist() == [[2.0, 3.0, 0.0], [1.0, 0.0, -2.0]]


def test_redistribute_sums_to_the_reward():
    """And differs between tokens just as the attributions do."""
    for seed in range(5):
        _, attributions, mask = ragged(seed, holes=True)
        rewards = torch.randn(7, dtype=torch.float64)
        found = redistribute(rewards, attributions, mask)
        some = mask.any(1)
        assert torch.allclose(found.sum(1)[some], rewards[some], atol=1e-12) and (found[~mask] == 0).all()
        shared = torch.where(mask, found - attributions, 0.0).sum(1) / mask.sum(1).clamp(min=1)
        assert torch.allclose(found[mask], (attributions + shared[:, None])[mask], atol=1e-12)


def test_win_rates_by_hand():
    # sigmoid(log 3) = 3/4. Group 0 holds 0, 0, log 3: (1/2 + 1/4) / 2 twice, and 3/4. Group 2: 1/4, 3/4. Group 1 alone
    log3 = math.log(3)
    rewards, group = t([0.0, 5.0, 0.0, -log3, log3, 0.0]), t([0, 1, 0, 2, 0, 2])
    assert win_rates(rewards, group).tolist() == pytest.approx([0.375, 0.5, 0.375, 0.25, 0.75, 0.75], abs=1e-6)


def test_win_rates_see_differences_within_a_group_only():
    rewards, group = torch.randn(9), t([0, 0, 0, 1, 1, 1, 1, 2, 2])
    found = win_rates(rewards, group)
    assert torch.allclose(win_rates(rewards + t([5.0] * 3 + [-2.0] * 4 + [0.0] * 2), group), found, atol=1e-5)
    assert torch.allclose(group_mean(found, group), torch.full((9,), 0.5), atol=1e-6)  # one's win is another's loss
    order = torch.argsort(rewards[:3])
    assert torch.equal(torch.argsort(found[:3]), order) and found.unique().numel() == 9
