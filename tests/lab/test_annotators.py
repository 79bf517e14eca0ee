"""People who differ, in worlds where it is known how: noise, order bias, and groups that want different things."""

import math

import pytest
import torch

from assay.batch import ModelOutput
from assay.lab.feedback import by_annotators
from assay.lab.fit import loss_of, maximise
from assay.lab.groups import fit_groups, log_likelihoods
from assay.lab.tabular import TabularModel
from assay.lab.world import World
from assay.rewards.likelihoods import AnnotatorGroups, Annotators
from assay.rewards.likelihoods.comparisons import BradleyTerry

PLAIN = BradleyTerry(centring_coef=0.0)
RESPONSES = 5


def world(seed=0):
    return World.random(contexts=1, vocabulary=RESPONSES, horizon=1, seed=seed)


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def centred(values):
    return values - values.mean(-1, keepdim=True)


def losses_of(model, likelihood, batch, learned):
    """[P] nats."""
    (term,) = likelihood.losses()
    return term.fn(model(batch, term.reads).fill(parameters=learned), batch)[0].detach()


# One reward, and noise and a bias of each annotator's own.

BETAS = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
BIASES = torch.tensor([0.6, -0.3, 0.0], dtype=torch.float64)


def noisy_people(num, seed):
    """A batch by three annotators, and the world; rewards in units of the typical annotator's noise."""
    place = world(seed=1)
    scale = BETAS / BETAS.log().mean().exp()
    rewards = scale[:, None, None] * place.oracle
    return place, by_annotators(place, rewards, num, drawn(seed), order_bias=BIASES)


def fitted_people(num=2000, seed=0):
    place, batch = noisy_people(num, seed)
    model, likelihood = TabularModel(place, dtype=torch.float64), Annotators(centring_coef=0, names=("a", "b", "c"))
    learned = maximise(model, likelihood, batch)
    return place, batch, model, likelihood, learned


def standard_scores(num, seed):
    """(estimate - truth) / standard error of rewards, log-temperatures and biases, the first two centred.

    The errors are the roots of the diagonal of the pseudo-inverse of the observed information: what no comparison
    tells, the level of the rewards and of the log-temperatures, are its null directions, and the pseudo-inverse is the
    covariance of the estimates with these taken off.
    """
    place, batch, model, likelihood, learned = fitted_people(num, seed)
    sizes = [RESPONSES, len(BETAS), len(BETAS)]
    start = torch.cat([model.rewards.detach()[0], learned["log_temperature"], learned["order_bias"]])

    def total(flat):
        rewards, log_temperature, order_bias = flat.split(sizes)
        parts = {"log_temperature": log_temperature, "order_bias": order_bias}
        out = torch.func.functional_call(model, {"reward_weights": rewards[None]}, (batch, ("rewards",)))
        return likelihood.losses()[0].fn(out.fill(parameters=parts), batch)[0].sum()

    errors = torch.linalg.pinv(torch.func.hessian(total)(start), hermitian=True, rtol=1e-9).diagonal().sqrt()
    truth = torch.cat([centred(place.oracle[0]), centred(-BETAS.log()), BIASES])
    rewards, log_temperature, order_bias = start.split(sizes)
    return (torch.cat([centred(rewards), centred(log_temperature), order_bias]) - truth) / errors, errors


def test_noise_and_order_bias_of_each_annotator_are_recovered():
    """Rewards, ratios of the betas and biases within 3 standard errors, which are small enough to say something."""
    scores, errors = standard_scores(2000, seed=0)
    assert scores.abs().max() < 3
    assert errors.max() < 0.25


def test_the_standard_errors_are_those_of_the_estimates():
    """Over 20 data sets the squares of the scores are 1 on average: 220 squares, about 9 in 11 independent."""
    squares = torch.stack([standard_scores(1000, seed)[0] for seed in range(20)]) ** 2
    assert squares.mean().item() == pytest.approx(1, abs=3 * math.sqrt(2 / (20 * 9)))


def test_each_annotators_own_noise_beats_the_pooled_rule_on_held_out_comparisons():
    place, batch, model, likelihood, learned = fitted_people()
    _, held_out = noisy_people(2000, seed=99)
    pooled = TabularModel(place, dtype=torch.float64)
    maximise(pooled, PLAIN, batch)
    own = losses_of(model, likelihood, held_out, learned)
    gain = losses_of(pooled, PLAIN, held_out, {}) - own
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(gain))


def test_people_who_do_not_differ_get_the_pooled_fit():
    """With one annotator and no known order the likelihood is Bradley-Terry's, to the last digits."""
    place, batch = noisy_people(200, seed=3)
    alone = batch.fill(annotator=torch.zeros_like(batch.annotator), shown_first=torch.zeros_like(batch.shown_first))
    likelihood = Annotators(centring_coef=0, names=("a",))
    model = TabularModel(place, dtype=torch.float64)
    learned = {name: value.double() for name, value in likelihood.learned.items()}
    assert loss_of(model, likelihood, alone, learned) == loss_of(model, PLAIN, alone)
    told = maximise(model, likelihood, alone)
    pooled = TabularModel(place, dtype=torch.float64)
    maximise(pooled, PLAIN, alone)
    assert torch.allclose(centred(model.rewards), centred(pooled.rewards), atol=1e-6)
    assert told["order_bias"].item() == 0


# Groups that want opposite things.

MEMBERS = torch.tensor([0] * 9 + [1] * 6)


def opposed(num, seed):
    """15 annotators; the second group wants the opposite of the first of responses 0 to 2, and the same of the rest."""
    place = world(seed=2)
    first = place.oracle[0]
    second = first.clone()
    second[:3] = -first[:3]
    truth = torch.stack([first, second])[:, None]
    return place, truth, by_annotators(place, truth[MEMBERS], num, drawn(seed))


def matched(groups):
    """The groups in the order of the planted ones: the swap that assigns more annotators right."""
    right = (groups.responsibilities.argmax(1) == MEMBERS).double().mean()
    order = [0, 1] if right >= 0.5 else [1, 0]
    return order, max(right.item(), 1 - right.item())


def reward_errors(rewards, batch, members):
    """[O] standard errors of centred rewards, by the expected information of the members' comparisons."""
    mine = members[batch.annotator[0::2]]
    one_hot = torch.nn.functional.one_hot(batch.ids[:, 0], RESPONSES).double()
    x = (one_hot[0::2] - one_hot[1::2])[mine]
    share = torch.sigmoid(x @ rewards)
    return torch.linalg.pinv((x.T * (share * (1 - share))) @ x, hermitian=True, rtol=1e-9).diagonal().sqrt()


def expected_errors(truth, num):
    """Annotators that the planted rewards themselves would put into the wrong group, after `num` comparisons each.

    The log ratio of the two likelihoods has mean num KL and, for rewards not too far apart, variance 2 num KL.
    """
    gaps = truth[:, 0, :, None] - truth[:, 0, None, :]
    share = torch.sigmoid(gaps)
    log_ratio = torch.log(share / share.flip(0)), torch.log((1 - share) / (1 - share).flip(0))
    pairs = RESPONSES * (RESPONSES - 1)
    kl = (share * log_ratio[0] + (1 - share) * log_ratio[1]).sum((1, 2)) / pairs
    return float(torch.special.ndtr(-(num * kl / 2).sqrt())[MEMBERS].sum())


def test_groups_that_want_opposite_things_are_found():
    """All 15 annotators, where fewer than a tenth of one should be wrong; rewards within 3 standard errors."""
    place, truth, batch = opposed(80, seed=0)
    assert expected_errors(truth, 80) < 0.1
    groups = fit_groups(place, batch, 2)
    order, right = matched(groups)
    assert right == 1
    assert groups.weights[order].tolist() == pytest.approx([0.6, 0.4], abs=0.02)
    for planted, k in enumerate(order):
        errors = reward_errors(truth[planted, 0], batch, planted == MEMBERS)
        scores = (centred(groups.rewards[k, 0]) - centred(truth[planted, 0])) / errors
        assert scores.abs().max() < 3 and errors.max() < 0.2


def test_groups_beat_the_pooled_rule_on_held_out_comparisons():
    """In nats for each annotator, by more than 3 standard errors over annotators."""
    place, _, batch = opposed(80, seed=0)
    _, _, held_out = opposed(80, seed=1)
    groups, pooled = (fit_groups(place, batch, num) for num in (2, 1))
    ours, theirs = (log_likelihoods(place, fit, held_out) for fit in (groups, pooled))
    gain = ours - theirs
    assert gain.mean() > 3 * gain.std() / math.sqrt(len(gain))


def test_the_likelihood_that_trains_language_models_has_this_fit_as_its_fixed_point():
    """At EM's end its E-step gives EM's responsibilities, and its M-step's loss is at a minimum."""
    place, _, batch = opposed(40, seed=3)
    groups = fit_groups(place, batch, 2, precision=0.1)
    likelihood = AnnotatorGroups(centring_coef=0, names=tuple(map(str, range(15))))
    rewards = groups.rewards.clone().requires_grad_()  # [K, C, O]
    outputs = rewards[:, 0, batch.ids[:, 0]].T
    learned = {"membership": torch.zeros(15, 2, dtype=torch.float64), "shares": groups.weights.clone()}
    likelihood.between_epochs(outputs.detach(), batch, learned)
    assert torch.allclose(learned["membership"], groups.responsibilities, atol=1e-9)
    assert torch.allclose(learned["shares"], groups.responsibilities.mean(0), atol=1e-9)
    losses, _ = likelihood.loss(ModelOutput(outputs=outputs, parameters=learned), batch)
    (losses.sum() + 0.1 / 2 * (rewards**2).sum()).backward()
    assert rewards.grad.abs().max() < 1e-3  # of a sum over 600 comparisons


def test_one_group_is_the_pooled_rule():
    place, _, batch = opposed(20, seed=4)
    pooled = TabularModel(place, dtype=torch.float64)
    maximise(pooled, PLAIN, batch)
    groups = fit_groups(place, batch, 1, restarts=1)
    assert torch.allclose(centred(groups.rewards[0]), centred(pooled.rewards), atol=1e-6)
    total = -loss_of(pooled, PLAIN, batch).item() * batch.num_rows / 2
    assert groups.history[-1] == pytest.approx(total, rel=1e-6)
    assert log_likelihoods(place, groups, batch).sum().item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("precision", [0.0, 0.5])
@pytest.mark.parametrize("num_groups", [2, 3])
def test_the_likelihood_never_falls(precision, num_groups):
    place, _, batch = opposed(30, seed=5)
    fit = fit_groups(place, batch, num_groups, precision=precision, restarts=1, max_iterations=40)
    steps = torch.tensor(fit.history, dtype=torch.float64).diff()
    assert len(steps) > 3 and steps[0] > 1
    assert steps.min() > -1e-7  # what L-BFGS leaves open


def test_a_prior_keeps_rewards_finite_where_a_group_always_judges_alike():
    place, _, batch = opposed(1, seed=6)
    groups = fit_groups(place, batch, 3, precision=1.0, restarts=1, max_iterations=10)
    assert groups.rewards.abs().max() < 4
    assert torch.allclose(groups.responsibilities.sum(1), torch.ones(15, dtype=torch.float64))
