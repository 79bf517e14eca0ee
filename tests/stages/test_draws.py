"""What methods draw beside the policy's answers: of whom, with whose probabilities, and where it is in the batch."""

from dataclasses import replace

import pytest
import torch

from assay.algorithms.nash_md import NashMD
from assay.algorithms.remax import ReMax
from assay.algorithms.sft import SFT
from assay.algorithms.xpo import XPO
from assay.cli import OK, main
from assay.config import config_class
from assay.engine.catalog import resolve_model
from assay.engine.load import LoRASettings, load_policy
from assay.engine.samples import SamplingSettings
from assay.records import reply
from assay.report.run import RunDirectory
from assay.rewards.rules import combine
from assay.stages.learners import make_learners
from assay.stages.online import Rollouts
from assay.stages.rewarding import Rewards
from assay.stages.sampling import Drawn, PolicySampler
from assay.tokens.chat import Encoder, collate
from assay.train.loop import Training
from stages.test_online_methods import train
from tiny import PROMPTS, prompts, tiny_model, tiny_reward, tokenizer, write

ASKED = PROMPTS[:6]
ENCODER = Encoder(tokenizer())
SAMPLING = SamplingSettings(max_tokens=8, temperature=0.9)
both = pytest.mark.parametrize("rank", [0, 4], ids=["every weight", "LoRA"])


def length(prompts, responses):
    return [float(len(response[-1]["content"])) for response in responses]


def source(algorithm, rank, *, steps=3, num=2):
    """Rollouts of a policy that has gone some steps from its reference."""
    lora = LoRASettings(rank=rank)
    config = config_class("policy", algorithm.name)(
        algorithm=algorithm, lora=lora, num_answers=num, batch_size=4, sampling=SAMPLING
    )
    model = load_policy(resolve_model(tiny_model()), dtype="float32", lora=lora)
    model.config.pad_token_id = tokenizer().pad_token_id
    model.temperature = SAMPLING.temperature
    learners = make_learners(model, config)
    sampler = PolicySampler(model, ENCODER, SAMPLING, learner=learners["policy"])
    made = Rollouts(sampler, PROMPTS, Rewards(None, 1.0, combine([(1.0, length)]), {}), config, learners)
    move(made, steps)
    return made


def move(made, steps):
    """Steps of the policy's training, towards other answers."""
    told = collate([[ENCODER.completion(prompt, reply("Forty-two, or a green fox."))] for prompt in PROMPTS], 0)
    policy = made.learners["policy"]
    for _ in range(steps):
        policy.forward_backward({"main": told}, SFT().losses())
        policy.step(lr=0.01, max_norm=1.0)


def beside(made, name, seed=3):
    made.generator.manual_seed(seed)
    return made._beside(name, ASKED)


def drawn_by(sampler, seed=3, **drawing):
    return sampler.draw(ASKED, 1, torch.Generator().manual_seed(seed), **drawing)


def untouched():
    """Who samples with the model that the policy began as, and knows nothing of learners."""
    model = load_policy(resolve_model(tiny_model()), dtype="float32")
    return PolicySampler(model.eval(), ENCODER, SAMPLING)


@both
def test_xpos_second_answer_is_the_references_before_and_after_steps(rank):
    """Those of a model that was never trained, whatever the policy has become: the same words of the same dice."""
    made = source(XPO(), rank, steps=0, num=1)
    wanted = drawn_by(untouched())
    for steps in (0, 3):
        move(made, steps)
        found = beside(made, "reference")
        assert found.samples.rows() == wanted.samples.rows()
        assert torch.allclose(found.samples.logprobs, wanted.samples.logprobs, atol=1e-5)
    assert drawn_by(made.sampler).samples.rows() != wanted.samples.rows()  # the policy went elsewhere


@both
def test_each_answer_of_xpo_has_the_log_probabilities_of_who_drew_it(rank):
    made = source(XPO(), rank, num=1)
    batch = made.next()["main"]
    assert batch.source.tolist() == [0, 1] * 4
    theirs = {0: "policy", 1: "reference"}
    told = {role: made.learners[role].forward(batch, ("logprobs",)).logprobs for role in theirs.values()}
    for who, role in theirs.items():
        other = told[theirs[1 - who]]
        rows = (batch.source == who)[:, None] & batch.mask
        assert torch.allclose(batch.sampler_logprobs[rows], told[role][rows], atol=1e-5)
        assert (batch.sampler_logprobs[rows] - other[rows]).abs().max() > 0.1


def logits_of(learner, batch):
    """[B, T, V] after each prefix of the batch's answers."""
    with learner.computing() as model, torch.no_grad():
        return model(batch, (), {"all": lambda logits, columns: logits}).vocabulary["all"]


@both
def test_remaxs_second_answer_is_the_policys_likeliest(rank):
    """Every token is the one that the policy finds likeliest there, which the reference does not."""
    made = source(ReMax(), rank)
    found = beside(made, "greedy")
    batch = found.batch([0.0] * len(ASKED))
    best, theirs = (logits_of(made.learners[role], batch).argmax(-1) for role in ("policy", "reference"))
    assert torch.equal(best[batch.mask], batch.ids[batch.mask])
    assert not torch.equal(theirs[batch.mask], batch.ids[batch.mask])
    assert beside(made, "greedy", seed=4).samples.rows() == found.samples.rows()  # nothing is left to chance
    assert drawn_by(made.sampler).samples.rows() != found.samples.rows()


@both
def test_nash_mds_mixture_is_all_reference_at_one_and_all_policy_at_nought(rank):
    made = source(NashMD(), rank)
    theirs, own = drawn_by(untouched()), drawn_by(made.sampler)
    assert theirs.samples.rows() != own.samples.rows()
    for share, wanted in ((1.0, theirs), (0.0, own)):
        made.config = replace(made.config, algorithm=NashMD(mixture=share))
        found = beside(made, "mixture")
        assert found.samples.rows() == wanted.samples.rows()
        assert torch.allclose(found.samples.logprobs, wanted.samples.logprobs, atol=1e-5)


@both
def test_nash_mds_mixture_leans_as_far_as_it_is_told(rank):
    """A token's log-probability is that of policy^(3/4) reference^(1/4), normalised."""
    made = source(NashMD(mixture=0.25), rank)
    found = beside(made, "mixture")
    batch = found.batch([0.0] * len(ASKED))
    policy, reference = (logits_of(made.learners[role], batch) for role in ("policy", "reference"))
    mixed = torch.log_softmax(0.75 * policy + 0.25 * reference, -1)
    told = torch.where(batch.mask, mixed.gather(-1, batch.ids[..., None])[..., 0], 0.0)
    assert torch.allclose(found.samples.logprobs, told, atol=1e-4)


def test_answers_of_several_draws_are_joined_prompt_by_prompt():
    """Two of the policy's, then the other's; each row is still the answer it was, whoever's is longer."""
    made = source(XPO(), 0)
    own = made.sampler.draw(ASKED, 2, torch.Generator().manual_seed(1))
    short = PolicySampler(made.sampler.model, ENCODER, SamplingSettings(max_tokens=3))
    other = short.draw(ASKED, 1, torch.Generator().manual_seed(2))
    assert own.samples.ids.shape[1] > other.samples.ids.shape[1]
    for parts in ([own, other], [other, own]):
        joined = Drawn.joined(parts)
        first, second = (part.num for part in parts)
        assert joined.source.tolist() == ([0] * first + list(range(1, second + 1))) * 6
        assert (joined.num, joined.own, joined.prompts) == (3, first, own.prompts)
        rows = [row for p in range(6) for part in parts for row in part.rollouts[p * part.num : (p + 1) * part.num]]
        assert list(joined.rollouts) == rows
        assert joined.samples.rows() == [row.ids for row in rows]
        batch = joined.batch(list(range(18)))
        assert batch.group.tolist() == [p for p in range(6) for _ in range(3)]
        for row, rollout in enumerate(rows):
            there, counts = batch.sampler_logprobs[row], batch.mask[row]
            assert there[counts].tolist() == list(rollout.sampler_logprobs) and not there[~counts].any()
            assert batch.prompts.ids[int(batch.group[row])].tolist() == list(ENCODER.prompt(rollout.prompt))


def test_nlpo_counts_its_steps_and_not_its_batches(tmp_path, monkeypatch):
    """Four steps on each batch, the mask follows every second: within a batch, and before the next one is drawn."""
    real, draw, seen, drawn = Training.one_step, Rollouts.next, [], []

    def weights(learner):
        return torch.cat([p.detach().flatten() for p in learner.model.network.parameters()])

    def one_step(self):
        found = real(self)
        seen.append({role: weights(self.learners[role]) for role in ("policy", "mask")})
        return found

    def next_batch(self):
        drawn.append((len(seen), weights(self.learners["mask"])))
        return draw(self)

    monkeypatch.setattr(Training, "one_step", one_step)
    monkeypatch.setattr(Rollouts, "next", next_batch)
    words = ["policy", "--run", tmp_path, "--model", tiny_model(), "--reward", tiny_reward(), "--ignore_gate", "true"]
    words += ["--data.path", write(tmp_path / "p.jsonl", prompts(8)), "--num_answers", 2, "--batch_size", 2]
    words += ["--algorithm.name", "nlpo", "--algorithm.sync", 2, "--algorithm.num_epochs", 2, "--steps", 5]
    words += ["--algorithm.num_minibatches", 2, "--sampling.max_tokens", 4, "--optimiser.lr", 1e-2]
    words += ["--optimiser.schedule", "constant", "--optimiser.warmup", 0, "--dtype", "float32"]
    assert main([str(word) for word in [*words, "--checkpoints.every", 0, "--critic.kind", "shared"]]) == OK
    assert [step for step, _ in drawn] == [0, 4]  # two batches for five steps
    base = drawn[0][1]
    for step, now in enumerate(seen, 1):
        assert torch.equal(now["mask"], base if step < 2 else seen[step // 2 * 2 - 1]["policy"])
    assert torch.equal(drawn[1][1], seen[3]["policy"]) and not torch.equal(seen[3]["policy"], base)
    assert not torch.equal(seen[1]["mask"], seen[3]["mask"])


def test_what_is_cut_by_top_p_is_scored_under_the_cut(tmp_path):
    """The ratio is 1 at the first step, and the policy's KL to the reference, which is itself, 0.

    Of two updates on a batch: with a single one the old log-probabilities are the policy's own and the ratio 1 by that.
    """
    words = ["--sampling.top_p", "0.7", "--sampling.temperature", "0.8", "--algorithm.num_epochs", "2", "--steps", "2"]
    assert train(tmp_path, write(tmp_path / "p.jsonl", prompts(8)), "grpo", *words) == OK
    first, then = RunDirectory(tmp_path).read_metrics("policy")
    assert first["sampler_gap"] < 1e-5 and abs(first["kl"]) < 1e-6 and first["ratio_spread"] == 0
    assert then["ratio_spread"] > 1e-3
