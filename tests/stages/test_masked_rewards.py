"""Which prompts' answers are handed to training: not those without rewards, nor those that all have the same one."""

import pytest
import torch

from assay.algorithms.grpo import GRPO
from assay.algorithms.online_dpo import OnlineDPO
from assay.algorithms.remax import ReMax
from assay.algorithms.rloo import RLOO
from assay.config import PolicyConfig
from assay.engine.samples import SamplingSettings
from assay.rewards.apart import FaultSettings
from assay.rewards.model import RewardModel
from assay.rewards.opening import open_reward
from assay.rewards.rules import combine
from assay.settings import InputError
from assay.stages.online import Rollouts
from assay.stages.rewarding import Rewards
from assay.stages.sampling import PolicySampler
from assay.train.batches import Shuffled
from tiny import PROMPTS, tiny_model, tiny_reward

BIRDS = "two birds"  # in every third of the prompts
SIZE = 6


def text(prompt):
    return prompt[-1]["content"]


def length(prompts, responses):
    return [float(len(text(response))) for response in responses]


def fails_on_birds(prompts, responses):
    if any(BIRDS in text(prompt) for prompt in prompts):
        raise OSError("no opinion of birds")
    return length(prompts, responses)


def own_of(*words):
    """Rewards 0, 1, 2, ... where the prompt has one of these words, and 5 for all else."""

    def rule(prompts, responses):
        told = [any(word in text(prompt) for word in words) for prompt in prompts]
        return [float(place) if differs else 5.0 for place, differs in enumerate(told)]

    return rule


@pytest.fixture(scope="module")
def sampler():
    return PolicySampler.load(tiny_model(), SamplingSettings(max_tokens=5), dtype="float32")


def source(sampler, rule, algorithm=RLOO(), *, model=None, size=SIZE):
    rewards = Rewards(model, 1.0, combine([(1.0, rule)]), {}, FaultSettings(then="mask"))
    config = PolicyConfig(algorithm=algorithm, num_answers=2, batch_size=size, seed=1)
    return Rollouts(sampler, PROMPTS, rewards, config)


def groups_of(batch):
    """Prompt, then what each of its answers is: ids, reward, log-probabilities; checked to lie side by side."""
    found, size = [], batch.num_rows // len(batch.prompts)
    assert batch.group.tolist() == [g for g in range(len(batch.prompts)) for _ in range(size)]
    for g, prompt in enumerate(batch.prompts.ids):
        rows = range(g * size, (g + 1) * size)
        lengths = [int(batch.lengths[row]) for row in rows]
        assert [int(batch.mask[row].sum()) for row in rows] == lengths
        ids, logprobs = (
            [tuple(column[row, :n].tolist()) for row, n in zip(rows, lengths)]
            for column in (batch.ids, batch.sampler_logprobs)
        )
        found.append((tuple(prompt.tolist()), ids, batch.rewards[g * size : (g + 1) * size].tolist(), logprobs))
    return found


def asked(sampler, rounds, *, size=SIZE):
    """The prompts as they come, with their ids."""
    order = Shuffled(PROMPTS, size, seed=1)
    return [(prompt, sampler.encoder.prompt(prompt)) for _ in range(rounds) for prompt in order.next()]


def has_birds(prompt):
    return BIRDS in prompt.messages[0].content


@pytest.mark.parametrize("algorithm", [RLOO(), ReMax(), OnlineDPO()], ids=lambda algorithm: algorithm.name)
def test_prompts_without_rewards_are_not_in_the_batch(sampler, algorithm):
    """The others are, with the answers, rewards and order that they would have had; groups are counted anew."""
    made, plain = source(sampler, fails_on_birds, algorithm), source(sampler, length, algorithm)
    failed = [has_birds(prompt) for prompt, _ in asked(sampler, 2)]
    assert 0 < sum(failed[:SIZE]) < SIZE and 0 < sum(failed[SIZE:]) < SIZE
    for first in (0, SIZE):
        found, whole = groups_of(made.next()["main"]), groups_of(plain.next()["main"])
        wrong = failed[first : first + SIZE]
        assert found == [group for group, bad in zip(whole, wrong, strict=True) if not bad]
        assert made.facts["prompts_without_rewards"] == sum(wrong)
        told = [reward for group in found for reward in group[2][:2]]  # the policy's own
        assert made.facts["reward"] == pytest.approx(sum(told) / len(told))


def test_a_prompt_that_the_reward_model_cannot_read_takes_no_other_along(sampler, monkeypatch):
    real, model = RewardModel.encode, open_reward(tiny_reward(), dtype="float32")
    whole = groups_of(source(sampler, length, model=model).next()["main"])

    def encode(self, conversation):
        if has_birds(conversation[0]):
            raise InputError("unreadable")
        return real(self, conversation)

    monkeypatch.setattr(RewardModel, "encode", encode)
    found = groups_of(source(sampler, length, model=model).next()["main"])
    kept = [group for group, (prompt, _) in zip(whole, asked(sampler, 1), strict=True) if not has_birds(prompt)]
    assert 0 < len(kept) < SIZE and [group[:2] for group in found] == [group[:2] for group in kept]
    for one, other in zip(found, kept, strict=True):
        assert one[2] == pytest.approx(other[2], abs=1e-4)  # read in other company


@pytest.mark.parametrize("words", [(BIRDS,), (BIRDS, "house")], ids=["a third", "two thirds"])
def test_dynamic_sampling_fills_the_batch_with_prompts_whose_answers_differ(sampler, words):
    """In the order in which they came, over as many rounds as it takes; the next batch goes on after these.

    Where two thirds differ the last round has more than still fit.
    """
    dynamic = source(sampler, own_of(*words), GRPO(dynamic_sampling=True), size=4)
    plain = source(sampler, own_of(*words), GRPO(), size=4)
    differ = [any(word in prompt.messages[0].content for word in words) for prompt, _ in asked(sampler, 6, size=4)]
    first, spare = 0, 0
    for _ in range(2):
        rounds, everything = 0, []
        while sum(differ[first : first + 4 * rounds]) < 4:
            rounds += 1
            everything += groups_of(plain.next()["main"])
        there = differ[first : first + 4 * rounds]
        assert 1 < rounds < 4 and not all(there)
        found = groups_of(dynamic.next()["main"])
        wanted = [group for group, is_told in zip(everything, there, strict=True) if is_told]
        assert found == wanted[:4] and all(len(set(group[2])) == 2 for group in found)
        assert dynamic.facts["sampling_rounds"] == rounds
        first, spare = first + 4 * rounds, spare + len(wanted) - 4
    assert (spare > 0) == (len(words) > 1)


def test_after_four_rounds_the_batch_is_what_there_is(sampler):
    """One prompt of twelve differs; it comes again in the fifth round, which there is none of."""
    order = asked(sampler, 5, size=4)
    rare, ids = order[-1]
    made = source(sampler, own_of(rare.messages[0].content), GRPO(dynamic_sampling=True), size=4)
    batch = made.next()["main"]
    num = [prompt.id for prompt, _ in order[:16]].count(rare.id)
    assert 0 < num < 4 and [tuple(found.tolist()) for found in batch.prompts.ids] == [ids] * num
    assert batch.num_rows == 2 * num and made.facts["sampling_rounds"] == 4
    assert made.facts["num_prompts"] == num and made.facts["frac_reward_zero_std"] == pytest.approx(1 - num / 16)


def test_neither_kind_of_prompt_is_in_a_batch_that_leaves_out_both(sampler):
    """Houses fail, birds differ, colours do not: four prompts with birds, however many rounds."""

    def rule(prompts, responses):
        if any("house" in text(prompt) for prompt in prompts):
            raise OSError("no opinion of houses")
        return own_of(BIRDS)(prompts, responses)

    made = source(sampler, rule, GRPO(dynamic_sampling=True), size=4)
    found = groups_of(made.next()["main"])
    rounds = int(made.facts["sampling_rounds"])
    drawn = asked(sampler, rounds, size=4)
    assert [group[0] for group in found] == [ids for prompt, ids in drawn if has_birds(prompt)][:4]
    houses = sum("house" in prompt.messages[0].content for prompt, _ in drawn)
    assert made.facts["prompts_without_rewards"] == houses > 0
    assert torch.tensor([group[2] for group in found]).diff(dim=1).ne(0).all()


@pytest.mark.parametrize("known", [1, 0], ids=["one round has rewards", "none has"])
def test_a_round_without_rewards_is_one_that_keeps_nothing(sampler, known):
    """Batches of one prompt: only the second one's rewards can be had, and with two it is not the end of the run."""
    there = [prompt.messages[0].content for prompt, _ in asked(sampler, 4, size=1)][1 : 1 + known]

    def rule(prompts, responses):
        if any(text(prompt) not in there for prompt in prompts):
            raise OSError("no opinion")
        return [float(place) for place, _ in enumerate(prompts)]

    made = source(sampler, rule, GRPO(dynamic_sampling=True), size=1)
    if known:
        assert len(made.next()["main"].prompts) == 1
        assert made.facts["sampling_rounds"] == 2 and made.facts["prompts_without_rewards"] == 1
    else:
        with pytest.raises(InputError, match="every prompt of a batch"):
            made.next()
