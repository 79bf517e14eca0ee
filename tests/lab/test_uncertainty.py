"""An ensemble in a world with linear features: unsure where its data say nothing, and what caution does about it.

Responses 0 to 59 lie in the span of what is compared, the rest reach out of it, more and more; the last one is a spike:
far out where one member happens to be enthusiastic and the truth is poor.
Source: Osband et al. 2016, arXiv:1602.04621; Coste et al. 2024, arXiv:2310.02743.
"""

import functools

import pytest
import torch

from assay.audit.abstention import doubt, risk_coverage
from assay.lab.feedback import compared
from assay.lab.fit import maximise
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from assay.rewards.likelihoods.comparisons import BradleyTerry
from assay.rewards.likelihoods.several import bootstrap_weights
from assay.rewards.readout import Readout

KNOWN, AWAY, MEMBERS, PAIRS, SEEDS = 60, 60, 5, 600, range(8)
SPAN, REST = 4, 3  # dimensions that comparisons reach, and others
SPIKE = KNOWN + AWAY - 1


@functools.cache
def trained(seed):
    """The truth [O], the features [O, D], and what each member says [O, M]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    starts = normal(MEMBERS, SPAN + REST)
    features = normal(KNOWN + AWAY, SPAN + REST)
    features[:KNOWN, SPAN:] = 0
    features[KNOWN:, SPAN:] *= torch.linspace(0.05, 1.5, AWAY)[:, None]
    features[SPIKE] = 0
    features[SPIKE, SPAN:] = 15 * starts[0, SPAN:] / starts[0, SPAN:].norm()
    weights = normal(SPAN + REST)
    weights[SPAN:] = -starts[0, SPAN:] / starts[0, SPAN:].norm()  # the truth is poor where the spike is
    truth = features @ weights
    world = World(
        KNOWN + AWAY, 1, torch.ones(1, dtype=torch.float64), torch.zeros(1, 1, KNOWN + AWAY).double(), truth[None]
    )
    first = torch.randint(KNOWN, (PAIRS,), generator=generator)
    second = (first + torch.randint(1, KNOWN, (PAIRS,), generator=generator)) % KNOWN
    right = torch.rand(PAIRS, generator=generator) < torch.sigmoid(truth[first] - truth[second])
    chosen, rejected = torch.where(right, first, second), torch.where(right, second, first)
    found = []
    for member, start in enumerate(starts):
        times = bootstrap_weights(torch.arange(PAIRS), member)  # as heads of one body are trained
        again = (tensor.repeat_interleave(times) for tensor in (torch.zeros_like(chosen), chosen, rejected))
        model = TabularModel(world, features=features[None], dtype=torch.float64)
        model.reward_weights.data.copy_(start)  # what no comparison reaches stays there, as in a network
        maximise(model, BradleyTerry(centring_coef=0.0), compared(world, *again))
        found.append(model.rewards.detach()[0])
    return truth, features, torch.stack(found, -1)


def read(opinions, rule, penalty=1.0):
    return Readout(kind="ensemble", rule=rule, penalty=penalty).reward(opinions)


@pytest.mark.parametrize("seed", SEEDS)
def test_members_disagree_off_the_data_more_than_on_it(seed):
    _, features, opinions = trained(seed)
    variance = Readout(kind="ensemble").uncertainty(opinions) ** 2
    out = features[:, SPAN:].norm(dim=-1)
    near, far = variance[:KNOWN].mean(), variance[KNOWN:SPIKE][out[KNOWN:SPIKE] > 1].mean()
    assert far > 8 * near
    assert variance[SPIKE] == variance.max()
    assert torch.corrcoef(torch.stack([out[KNOWN:SPIKE], variance[KNOWN:SPIKE].sqrt()]))[0, 1] > 0.5


def test_caution_avoids_a_spike_off_the_data_that_the_mean_or_a_member_picks():
    """Best of all responses, in 8 worlds: the mean and the enthusiast fall for it, the cautious rules never."""
    worth = {"member": [], "mean": [], "cautious": [], "min": [], "soft": []}
    spiked = dict.fromkeys(worth, 0)
    for seed in SEEDS:
        truth, _, opinions = trained(seed)
        for rule, found in worth.items():
            reward = opinions[:, 0] if rule == "member" else read(opinions, rule)
            pick = int(reward.argmax())
            spiked[rule] += pick == SPIKE
            found.append(truth[pick].item())
    assert spiked["member"] == len(SEEDS)
    assert spiked["mean"] >= 3
    assert spiked["cautious"] == spiked["min"] == 0
    mean = {rule: sum(found) / len(found) for rule, found in worth.items()}
    assert min(mean["cautious"], mean["min"]) > mean["mean"] + 1 > mean["member"] + 1


def curves(measure):
    """Error at coverages 1/4, 1/2, 3/4 and 1, and the area, over 2000 pairs of a known response and any, 8 worlds."""
    found = []
    for seed in SEEDS:
        truth, _, opinions = trained(seed)
        generator = torch.Generator().manual_seed(100 + seed)
        one = torch.randint(KNOWN, (2000,), generator=generator)
        other = torch.randint(SPIKE, (2000,), generator=generator)
        one, other = one[one != other], other[one != other]
        difference = opinions[one] - opinions[other]
        right = difference.mean(-1).sign() == (truth[one] - truth[other]).sign()
        curve = risk_coverage(right.double().numpy(), measure(difference.mean(-1).numpy(), difference.std(-1).numpy()))
        found.append([curve.at(share) for share in (0.25, 0.5, 0.75, 1.0)] + [curve.area])
    return torch.tensor(found).mean(0).tolist()


def test_errors_fall_as_the_threshold_of_abstention_tightens():
    sure, half, most, whole, area = curves(doubt)
    assert sure < half < most < whole
    assert sure == 0 and half < 0.1 * whole and area < 0.2 * whole


def test_deviation_over_difference_orders_pairs_better_than_either_alone():
    """Deviation alone tells pairs outside of the data from others, and nothing among those inside."""
    both, margin, deviation = (
        curves(measure) for measure in (doubt, lambda d, _: -abs(d), lambda _, deviation: deviation)
    )
    assert both[-1] < 0.6 * margin[-1] < margin[-1] < 0.6 * deviation[-1]
    assert deviation[1] < deviation[3] and deviation[-1] < 0.7 * deviation[3]
