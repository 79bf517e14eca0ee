"""The parts of the policy stage: the reference, the order of rollouts, what is counted."""

import copy

import pytest
import torch

from assay.algorithms import DPO, RLOO
from assay.config import DataSettings, config_class
from assay.engine.catalog import resolve_model
from assay.engine.learner import Learner
from assay.engine.load import LoRASettings, load_policy
from assay.engine.samples import SamplingSettings
from assay.records import Comparison, reply, user_prompt
from assay.settings import InputError
from assay.stages.common import data_columns, keep_fitting
from assay.stages.learners import make_learners
from assay.stages.online import Rollouts
from assay.stages.rewarding import Rewards, load_rules
from assay.stages.sampling import PolicySampler
from assay.tokens.chat import Encoder, collate
from tiny import CONVERSATIONS, PROMPTS, tiny_model, tokenizer


def encoder() -> Encoder:
    return Encoder(tokenizer())


def batch():
    words = encoder()
    return collate(
        [[words.completion(prompt, reply(t)) for t in ("Yes.", "No, not now.")] for prompt in PROMPTS[:3]], 0
    )


@pytest.mark.parametrize("rank", [0, 4], ids=["every weight", "LoRA"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_the_policy_at_step_0_and_stays_it(rank, dtype):
    config = config_class("policy", "dpo")(algorithm=DPO(), lora=LoRASettings(rank=rank))
    model = load_policy(resolve_model(tiny_model()), dtype=dtype, lora=config.lora)
    frozen = Learner(load_policy(resolve_model(tiny_model()), dtype=dtype))  # a copy that never had an adapter
    learners = make_learners(model, config)
    expected = frozen.forward(batch(), ("logprobs",)).logprobs
    for role in ("reference", "policy"):
        assert torch.equal(learners[role].forward(batch(), ("logprobs",)).logprobs, expected), role
    for _ in range(3):
        ready = config.algorithm.prepare(batch(), learners, {})
        learners["policy"].forward_backward({"main": ready}, config.algorithm.losses())
        learners["policy"].step(lr=0.02, max_norm=1.0)
    assert torch.equal(learners["reference"].forward(batch(), ("logprobs",)).logprobs, expected)
    moved = learners["policy"].forward(batch(), ("logprobs",)).logprobs
    assert float((moved - expected).abs().max()) > 0.1


def test_the_reference_reads_at_the_sampling_temperature():
    config = config_class("policy", "rloo")(algorithm=RLOO(), sampling=SamplingSettings(temperature=0.7))
    model = load_policy(resolve_model(tiny_model()), dtype="float32")
    model.temperature = 0.7
    learners = make_learners(model, config)
    found = learners["reference"].forward(batch(), ("logprobs",)).logprobs
    assert torch.allclose(found, learners["policy"].forward(batch(), ("logprobs",)).logprobs, atol=1e-6)
    cold = copy.deepcopy(model)
    cold.temperature = 1.0
    assert not torch.allclose(found, Learner(cold).forward(batch(), ("logprobs",)).logprobs, atol=1e-2)


LENGTH = "def length(prompts, responses, **_):\n    return [float(len(r[-1]['content'])) for r in responses]\n"


@pytest.fixture
def rollouts(tmp_path):
    (tmp_path / "rules.py").write_text(LENGTH)
    rewards = Rewards(None, 1.0, load_rules([f"3*{tmp_path}/rules.py:length"]), {})
    sampler = PolicySampler.load(tiny_model(), SamplingSettings(max_tokens=10), dtype="float32")

    def make() -> Rollouts:
        config = config_class("policy", "rloo")(num_answers=3, batch_size=4, seed=2)
        return Rollouts(sampler, PROMPTS[:6], rewards, config)

    return make


def test_every_reward_meets_its_own_answer(rollouts):
    source = rollouts()
    made = source.next()["main"]
    words = encoder()
    assert made.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for row in range(12):
        text = words.decode(made.ids[row, : int(made.lengths[row])].tolist())
        assert made.rewards[row] == 3 * len(text)
    facts = source.facts
    assert facts["reward"] == pytest.approx(float(made.rewards.mean()))
    assert facts["rewards/length/mean"] == pytest.approx(float(made.rewards.mean()) / 3)
    assert facts["length_mean"] == pytest.approx(float(made.lengths.float().mean()))
    ended = [int(made.ids[row, int(made.lengths[row]) - 1]) == words.eos for row in range(12)]
    assert facts["share_cut"] == pytest.approx(1 - sum(ended) / 12)
    groups = made.rewards.view(4, 3)
    assert facts["reward_std"] == pytest.approx(float(groups.std(dim=1, unbiased=False).mean()), rel=1e-5)
    assert facts["frac_reward_zero_std"] == pytest.approx(float((groups.std(dim=1) == 0).float().mean()))


def test_rollouts_go_on_where_they_stopped(rollouts):
    whole, first, second = rollouts(), rollouts(), rollouts()
    expected = [whole.next()["main"] for _ in range(3)]
    first.next()
    second.load_state_dict(first.state_dict())
    for old in expected[1:]:
        new = second.next()["main"]
        for name in ("ids", "lengths", "rewards", "sampler_logprobs"):
            assert torch.equal(getattr(new, name), getattr(old, name))
    assert not torch.equal(expected[0].ids[:, :5], expected[1].ids[:, :5])


def test_a_prompt_that_leaves_no_room_is_refused_while_sampling():
    sampler = PolicySampler.load(tiny_model(), SamplingSettings(max_tokens=250), dtype="float32")
    with pytest.raises(InputError, match="passes the model's context of 256"):
        sampler.draw(PROMPTS[:1], 1, torch.Generator())


def test_columns_of_answers_follow_the_chosen_one():
    """Rows are the chosen answer, then the other; the file's order is another where its second one was preferred."""
    two = (reply("Yes."), reply("No."))
    records = [
        Comparison(prompt=PROMPTS[0], responses=two, preference=p, meta={"cost": [1, 2], "weight": 3})
        for p in (1.0, 0.2)
    ]
    assert data_columns(records, {"cost": float})["cost"].tolist() == [1, 2, 2, 1]
    assert data_columns(records, {"weight": float})["weight"].tolist() == [3, 3]


def test_what_is_dropped_and_what_is_unshared_is_counted(capsys):
    glued = copy.deepcopy(tokenizer())
    glued.chat_template = (
        "{% for m in messages %}{{ m.role[0] + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
    )
    words = Encoder(glued)
    answers = ("and so on", "1 2 3 4 5 6 7 8 9 10 11 12", "7")

    def encode(text):
        return [words.conversation(user_prompt("Hi."), reply(text))]

    unshared = [text for text in answers if not encode(text)[0].shared]
    assert unshared
    kept = keep_fitting(answers, encode, 12, DataSettings(path="x.jsonl", too_long="skip"))
    assert [text for text, _ in kept] == ["and so on", "7"]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "x.jsonl: dropped 1 of 3 records longer than 12 tokens"
    num = sum(text in unshared for text, _ in kept)
    assert said[1].startswith(f"x.jsonl: {num} answers do not share their prompt")
    with pytest.raises(InputError, match=r"1 of 3 records are longer than 12 tokens \(the longest has \d+\)"):
        keep_fitting(answers, encode, 12, DataSettings(path="x.jsonl"))
    with pytest.raises(InputError, match="no record fits 2 tokens"):
        keep_fitting(answers, encode, 2, DataSettings(path="x.jsonl", too_long="skip"))


def test_nothing_is_said_where_nothing_was_dropped(capsys):
    words = encoder()
    kept = keep_fitting([1], lambda _: [words.conversation(*CONVERSATIONS[0])], 999, DataSettings(path="x"))
    assert len(kept) == 1 and capsys.readouterr().out == ""
