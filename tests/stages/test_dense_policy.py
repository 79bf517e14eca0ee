"""Rewards at tokens on their way into a policy: alignment, what is paid, what sums to what."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from assay.cli import OK, WRONG_INPUT, main
from assay.engine.samples import SamplingSettings
from assay.records import Rollout, reply
from assay.report.run import RunDirectory
from assay.rewards.dense import at_sampled_tokens
from assay.rewards.implicit import ImplicitReward
from assay.rewards.model import RewardModel
from assay.stages.rewarding import Dense
from assay.stages.sampling import PolicySampler
from assay.tokens.chat import Encoded, Encoder
from tiny import PROMPTS, TokenRewards, pairs, prompts, random_network, save, tiny_model, tokenizer, write


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> str:
    """A reward model whose token rewards sum to the sequence's."""
    folder = tmp_path_factory.mktemp("dense")
    words = ["reward", "--run", folder / "run", "--model", tiny_model(), "--likelihood", "token_bradley_terry"]
    words += ["--data.path", write(folder / "p.jsonl", pairs(12)), "--held_out", 0, "--dtype", "float32"]
    assert main([str(word) for word in [*words, "--optimiser.lr", "0.01"]]) == OK
    return str(folder / "run" / "reward")


@pytest.fixture(scope="module")
def drawn():
    sampler = PolicySampler.load(tiny_model(), SamplingSettings(max_tokens=8), dtype="float32")
    return sampler.draw(PROMPTS[:3], 4, torch.Generator().manual_seed(0))


def paid_by(dense, drawn, batch):
    return dense(dense.read(drawn.rollouts), batch)


def test_token_rewards_sum_to_the_models_own(dense, drawn):
    model = RewardModel.from_pretrained(dense, dtype="float32")
    found = at_sampled_tokens(model, drawn.rollouts, Encoder(tokenizer()))
    whole = model.score([(r.prompt, r.response) for r in drawn.rollouts])
    assert [len(row) for row in found] == [len(r.ids) for r in drawn.rollouts]
    assert [float(row.sum()) for row in found] == pytest.approx(whole, abs=1e-4)
    batch = drawn.batch([0.0] * 12)
    paid = paid_by(Dense(model, "rewards", Encoder(tokenizer())), drawn, batch)
    assert (paid[~batch.mask] == 0).all() and paid.sum(1).tolist() == pytest.approx(whole, abs=1e-4)


class Letters(TokenRewards):
    """Pays 1 for each token of the answer's own spelling; other tokens than the policy may have used."""

    name, readout = "letters", None

    def outputs_encoded(self, encoded):
        raise NotImplementedError

    def token_rewards(self, conversations):
        return [torch.arange(1.0, len(self.encode(c).ids) + 1) for c in conversations]


def test_rewards_find_their_place_where_tokens_differ():
    """The policy wrote "the" letter by letter, the model reads one token: it is paid where the word ends."""
    words, model = Encoder(tokenizer()), Letters()
    letters = [words.tokenizer.convert_tokens_to_ids(letter) for letter in "the"]
    theirs = model.encode((PROMPTS[0], reply("the"))).ids
    joined = len(words.tokenizer("the", add_special_tokens=False)["input_ids"])
    assert joined < 3
    shared = {"prompt": PROMPTS[0], "response": reply("the"), "stop": "stop"}
    rollout = Rollout(ids=(*letters, words.eos), sampler_logprobs=(0.0,) * 4, **shared)
    (found,) = at_sampled_tokens(model, [rollout], words)
    total = len(theirs) * (len(theirs) + 1) / 2
    assert found.sum() == total and found[2:].sum() >= total - 1
    same = Rollout(ids=tuple(theirs[: joined + 1]), sampler_logprobs=(0.0,) * (joined + 1), **shared)
    (found,) = at_sampled_tokens(model, [same], words)
    assert found[:joined].tolist() == list(range(1, joined + 1)) and found.sum() == total


def words_of(*known):
    """A tokenizer whose tokens begin with their space, which decoding a token alone drops."""
    model = WordLevel({word: place for place, word in enumerate(["</s>", *known])}, unk_token="</s>")
    words = Tokenizer(model)
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"))


@pytest.mark.parametrize("text", ["the cat sat", "\U0001f642 cat sat"])
def test_spaces_and_characters_of_several_tokens_are_counted_once(text):
    policy, model = words_of(*(f"\u2581{word}" for word in text.split())), Letters()
    theirs = model.encode((PROMPTS[0], reply(text))).ids
    opening = len(model.encoder.tokenizer(text.split()[0], add_special_tokens=False)["input_ids"])
    assert (opening == 1) == (text[0] == "t")
    rollout = Rollout(
        prompt=PROMPTS[0], response=reply(text), stop="stop", ids=(1, 2, 3, 0), sampler_logprobs=(0.0,) * 4
    )
    (found,) = at_sampled_tokens(model, [rollout], policy)
    values = torch.arange(1.0, len(theirs) + 1)
    parts = [values[:opening], values[opening : opening + 1], values[opening + 1 : opening + 2], values[opening + 2 :]]
    assert found.tolist() == [float(part.sum()) for part in parts]


class Whole(Encoder):
    """Gives a conversation without a shared prompt."""

    def conversation(self, prompt, response):
        found = super().conversation(prompt, response)
        ids = (*found.trunk, *found.ids)
        return Encoded((), ids, (*[False] * len(found.trunk), *found.mask), shared=False)


def test_a_prompt_among_the_answers_ids_takes_no_place():
    apart, whole = Letters(), Letters()
    whole.encoder = Whole(tokenizer())
    text, words = "the cat sat", Encoder(tokenizer())
    ids = (*(words.tokenizer.convert_tokens_to_ids(letter) for letter in "the"), *words._ids(" cat sat"), words.eos)
    rollout = Rollout(prompt=PROMPTS[0], response=reply(text), stop="stop", ids=ids, sampler_logprobs=(0.0,) * len(ids))
    whole.token_rewards = lambda conversations: [  # the prompt's tokens are paid nothing
        torch.cat([torch.zeros(len(whole.encode(c).ids) - len(paid)), paid])
        for c, paid in zip(conversations, apart.token_rewards(conversations), strict=True)
    ]
    both = [at_sampled_tokens(model, [rollout], words)[0].tolist() for model in (apart, whole)]
    assert both[0] == both[1] and sum(value > 0 for value in both[0]) == 4


def test_attributions_share_the_reward_and_potentials_pay_nothing_in_all(tmp_path, drawn):
    other = save(random_network(LlamaForCausalLM, seed=9), tmp_path / "other")
    model = ImplicitReward.from_pretrained(f"implicit:0.5*{other}:{tiny_model()}", dtype="float32")
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(0)).tolist()
    batch = drawn.batch(rewards)
    for kind in ("attributions", "potentials"):
        paid = paid_by(Dense(model, kind, Encoder(tokenizer())), drawn, batch)
        assert paid.sum(1).tolist() == pytest.approx(rewards, abs=1e-4)
        assert (paid[~batch.mask] == 0).all()
    own = paid_by(Dense(model, "rewards", Encoder(tokenizer())), drawn, batch)
    assert own.sum(1).tolist() == pytest.approx(model.score([(r.prompt, r.response) for r in drawn.rollouts]), abs=1e-4)


@pytest.mark.parametrize("name", ["reinforce", "ppo", "reinforce_pp"])
@pytest.mark.parametrize("kind", ["rewards", "potentials"])
def test_policies_are_paid_by_the_token(name, kind, dense, tmp_path):
    words = ["policy", "--run", tmp_path, "--model", tiny_model(), "--data.path"]
    words += [
        write(tmp_path / "p.jsonl", prompts(8)),
        "--algorithm.name",
        name,
        "--reward",
        dense,
        "--dense.kind",
        kind,
    ]
    words += ["--ignore_gate", "true", "--num_answers", 2, "--batch_size", 4, "--steps", 4, "--dtype", "float32"]
    assert main([str(word) for word in [*words, "--sampling.max_tokens", 6, "--checkpoints.every", 0]]) == OK
    assert all(row["grad_norm"] > 0 for row in RunDirectory(tmp_path).read_metrics("policy"))


def test_a_model_without_rewards_at_tokens_is_refused(drawn, tmp_path, capsys):
    from tiny import tiny_reward

    words = ["policy", "--run", tmp_path, "--model", tiny_model(), "--reward", tiny_reward(), "--ignore_gate", "true"]
    words += ["--data.path", write(tmp_path / "p.jsonl", prompts(8)), "--algorithm.name", "ppo"]
    assert main([str(word) for word in [*words, "--dense.kind", "rewards"]]) == WRONG_INPUT
    assert "has, as it is used here, no rewards for tokens" in capsys.readouterr().err


@pytest.mark.parametrize("use", ["several", "told"])
def test_rewards_at_tokens_are_refused_where_the_use_has_none(use, dense, tmp_path, capsys):
    """Before anything is sampled: several models have one opinion an answer, and so has one that is told principles."""
    other = shutil.copytree(dense, tmp_path / "other")
    told = {"several": ["--reward", f"{dense},{other}"], "told": ["--reward", dense]}[use]
    if use == "told":
        path = write(tmp_path / "principles.jsonl", [{"name": "brief", "text": "Be brief.", "negation": "Be long."}])
        told += ["--principles.path", path, "--principles.told", "brief"]
    words = ["policy", "--run", tmp_path, "--model", tiny_model(), *told, "--ignore_gate", "true"]
    words += ["--data.path", write(tmp_path / "p.jsonl", prompts(8)), "--algorithm.name", "ppo"]
    assert main([str(word) for word in [*words, "--dense.kind", "rewards"]]) == WRONG_INPUT
    assert "has, as it is used here, no rewards for tokens" in capsys.readouterr().err
