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
from assay.rewards.judge import open_judge
from assay.rewards.model import RewardModel
from assay.rewards.opening import open_reward
from assay.rewards.rules import combine
from assay.settings import InputError
from assay.stages.online import Rollouts
from assay.stages.rewarding import Rewards
from assay.stages.sampling import PolicySampler
from assay.train.batches import Shuffled
from tiny import PROMPTS, prompts, tiny_model, tiny_reward, write

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
        with pytest.raises(
            InputError, match=r"every prompt of 4 batches.* 'rule' failed on 2 responses: OSError: no op"
        ):
            made.next()


def test_batches_without_rewards_are_passed_over(sampler):
    """Of a method that does not sample on otherwise; prompts that were lost on the way are told."""
    order = [prompt.messages[0].content for prompt, _ in asked(sampler, 4, size=1)]

    def rule(prompts, responses):
        if any(text(prompt) != order[2] for prompt in prompts):
            raise OSError("no opinion")
        return [float(place) for place, _ in enumerate(prompts)]

    made = source(sampler, rule, GRPO(), size=1)
    assert len(made.next()["main"].prompts) == 1 and made.facts["prompts_without_rewards"] == 2
    with pytest.raises(InputError, match=r"every prompt of 4 batches could not be had.* OSError: no opinion"):
        for _ in order:
            made.next()


def test_where_no_prompt_differs_the_last_that_have_rewards_are_trained_on(sampler):
    """Batches of one prompt: the first two's rewards cannot be had, all the others are equal."""
    failing = {prompt.messages[0].content for prompt, _ in asked(sampler, 4, size=1)[:2]}

    def rule(prompts, responses):
        if any(text(prompt) in failing for prompt in prompts):
            raise OSError("no opinion")
        return [1.0] * len(prompts)

    made = source(sampler, rule, GRPO(dynamic_sampling=True), size=1)
    (kept, _) = asked(sampler, 4, size=1)[3]
    assert [group[0] for group in groups_of(made.next()["main"])] == [sampler.encoder.prompt(kept)]
    assert made.facts["num_prompts"] == 1 and made.facts["frac_reward_zero_std"] == 1


def test_reasons_are_said_once_each_and_the_first_few(sampler, capsys):
    said = iter(range(100))

    def rule(prompts, responses):
        raise OSError("down" if len(prompts) > 2 or next(said) % 2 else f"no. {next(said)}")

    rewards = source(sampler, rule).rewards
    drawn = sampler.draw(PROMPTS[:12], 2, torch.Generator().manual_seed(0))
    assert all(rewards(drawn.rollouts, 2).failed)
    lines = [line for line in capsys.readouterr().out.replace("\n  ", " ").splitlines() if "goes without" in line]
    assert 1 < len(lines) == len(set(lines)) <= 5


def test_a_judge_that_cannot_answer_takes_no_other_prompt_along(sampler, capsys):
    real = open_judge(tiny_model(), dtype="float32")
    drawn = sampler.draw([prompt for prompt, _ in asked(sampler, 1)], 2, torch.Generator().manual_seed(0))

    class Judge:
        def compare(self, prompts, firsts, seconds):
            if any(map(has_birds, prompts)):
                raise InputError("a question to the judge has 307 tokens")
            return real.compare(prompts, firsts, seconds)

    def scored(judge, then):
        return Rewards(None, 1.0, None, {}, FaultSettings(then=then), judge)(drawn.rollouts, 2)

    birds = [has_birds(rollout.prompt) for rollout in drawn.rollouts]
    found, whole = scored(Judge(), "mask"), scored(real, "mask")
    assert found.failed == birds and not any(whole.failed)
    kept = [place for place, is_bird in enumerate(birds) if not is_bird]
    assert [found.totals[i] for i in kept] == pytest.approx([whole.totals[i] for i in kept], abs=1e-4)
    assert "a prompt goes without rewards: a question to the judge" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"307 tokens .or go on without such prompts: --faults.then mask"):
        scored(Judge(), "stop")


def test_prompts_that_the_judge_could_not_read_are_told_before_training(tmp_path, refused):
    """Of about 160 tokens, which fit the policy's context of 256, but not the judge's with two answers."""
    rows = prompts(3)
    rows[1]["prompt"][-1]["content"] = "word " * 150
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--judge", tiny_model(), "--num_answers", 2]
    words += ["--data.path", write(tmp_path / "p.jsonl", rows), "--algorithm.name", "online_dpo", "--dtype", "float32"]
    said = refused(*words, "--sampling.max_tokens", 6)
    assert "p.jsonl: 1 of 3 records are longer than" in said and "--data.too_long skip" in said


def test_a_judge_that_cannot_be_asked_is_refused_before_a_model_is_loaded(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("assay.engine.load._load", None)
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--judge", "http://127.0.0.1:9/v1"]
    words += ["--data.path", write(tmp_path / "p.jsonl", prompts(3)), "--algorithm.name", "online_dpo"]
    words += ["--reward", tiny_reward(), "--ignore_gate", "true", "--num_answers", 2]
    assert "the judge's model is missing" in refused(*words)
