"""What an answer is worth in all, and where it is paid: environment, rules, rewards at tokens, penalties together."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForSequenceClassification

from assay.algorithms import ALGORITHMS
from assay.algorithms.grpo import GRPO
from assay.algorithms.ppo import PPO
from assay.algorithms.reinforce import REINFORCE
from assay.algorithms.reinforce_pp import REINFORCEPP
from assay.algorithms.rloo import RLOO
from assay.cli import FAULT, OK, WRONG_INPUT, main
from assay.config import DenseSettings, PolicyConfig
from assay.engine.samples import SamplingSettings
from assay.records import user_prompt
from assay.report.run import RunDirectory
from assay.rewards.apart import FaultSettings
from assay.rewards.readout import Readout
from assay.settings import InputError
from assay.stages.online import Rollouts, Watch
from assay.stages.policy import open_dense
from assay.stages.rewarding import Dense, Rewards, load_rules
from assay.stages.sampling import PolicySampler
from assay.stages.turns import Episodes, environment_at
from assay.tokens.chat import Encoder
from assay.train.batches import Shuffled
from tiny import PROMPTS, TokenRewards, prompts, random_network, save, tiny_model, tokenizer, write

LENGTH = """def length(prompts, responses, **_):
    return [float(len(r[-1]['content'])) for r in responses]


def first(prompts, responses, **_):
    return [float(i % 3) for i in range(len(responses))]
"""
GAME = '''
class Game:
    """Pays for short turns, twice."""

    def __init__(self, prompt, **columns):
        self.left = 2

    def step(self, messages):
        self.left -= 1
        told = [{"role": "user", "content": "Go on, and tell me more of it."}]
        return told, -float(len(messages[-1]["content"])), not self.left


class Shy(Game):
    """Breaks off where a prompt speaks of birds."""

    def __init__(self, prompt, **columns):
        super().__init__(prompt, **columns)
        self.shy = "two birds" in prompt[0]["content"]

    def step(self, messages):
        if self.shy:
            raise TimeoutError("gone")
        return super().step(messages)


class Even(Game):
    """Pays every conversation the same."""

    def step(self, messages):
        return [], 1.0, True
'''


def episodes_at(sampler, place, max_turns, faults=None):
    return Episodes(sampler, environment_at(place), place, max_turns, faults)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "rules.py").write_text(LENGTH)
    (tmp_path / "game.py").write_text(GAME)
    return tmp_path


@pytest.fixture(scope="module")
def sampler():
    return PolicySampler.load(tiny_model(), SamplingSettings(max_tokens=6), dtype="float32")


class Halves(TokenRewards):
    """Half a point for every token, and one reward for the whole that is something else."""

    name, readout = "halves", Readout()

    def outputs_encoded(self, encoded):
        return torch.full((len(encoded), 1), 7.0)

    def token_rewards(self, conversations):
        return [torch.full((len(self.encode(conversation).ids),), 0.5) for conversation in conversations]


def source(sampler, files, algorithm, *, weight=1.0, rules=(), game="", model=None, dense="", faults=None, **settings):
    rewards = Rewards(model, weight, load_rules([f"{files}/rules.py:{name}" for name in rules]), {}, faults)
    config = PolicyConfig(algorithm=algorithm, num_answers=3, batch_size=4, environment=game, **settings)
    episodes = episodes_at(sampler, f"{files}/game.py:{game}", 3, faults) if game else None
    paid = Dense(model, dense, Encoder(tokenizer()), weight=weight) if dense else None
    return Rollouts(sampler, PROMPTS[:6], rewards, config, None, paid, episodes)


def test_rules_and_penalties_come_at_the_end_of_what_tokens_are_paid(sampler, files):
    """Tokens get the model's rewards at tokens, weighed; the last one all that the answer is worth beside the model."""
    cut = {"cut_answers": "penalty", "cut_penalty": 10.0}
    made = source(sampler, files, PPO(), weight=2.0, rules=["length"], model=Halves(), dense="rewards", **cut)
    batch = made.next()["main"]
    plain = source(sampler, files, PPO(), weight=2.0, model=Halves(), dense="rewards").next()["main"]
    assert torch.equal(batch.ids, plain.ids)
    words = Encoder(tokenizer())
    assert made.facts["share_cut"] > 0
    for row in range(12):
        length = int(batch.lengths[row])
        ids = batch.ids[row, :length].tolist()
        was_cut = ids[-1] != words.eos
        beside = len(words.spoken(ids)) - 10.0 * was_cut
        expected = plain.token_rewards[row].clone()
        expected[length - 1] += beside
        assert batch.token_rewards[row].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        assert float(batch.rewards[row]) == pytest.approx(2 * 7 + beside, abs=1e-4)


def test_an_environment_pays_where_it_does_and_rules_at_the_end(sampler, files):
    """Equal totals, whichever way they came; the length that is told is what the policy wrote."""
    made = source(sampler, files, REINFORCE(), rules=["length"], game="Game")
    batch = made.next()["main"]
    assert batch.token_rewards.sum(1).tolist() == pytest.approx(batch.rewards.tolist(), abs=1e-4)
    assert (batch.lengths > batch.mask.sum(1)).any()
    assert made.facts["length_mean"] == pytest.approx(float(batch.mask.sum(1).float().mean()))
    assert made.facts["reward"] == pytest.approx(float(batch.rewards.mean()), abs=1e-4)


def test_what_an_environment_says_is_not_what_the_policy_wrote(sampler, files):
    """Its tokens do not count as the answer's, its words not as repetition."""
    (files / "rules.py").write_text(
        "def tokens(prompts, responses, num_tokens):\n    return [float(number) for number in num_tokens]\n"
    )
    said = GAME.replace("Go on, and tell me more of it.", "on and on and on and on and on and on and on")
    (files / "game.py").write_text(said)
    made = source(sampler, files, RLOO(), rules=["tokens"], game="Game")
    batch = made.next()["main"]
    beside = batch.rewards - batch.token_rewards.sum(1)
    at_end = torch.tensor([float(m.sum()) for m in batch.mask])
    told = made.facts["rewards/tokens/mean"]
    assert told == pytest.approx(float(at_end.mean())) and beside.abs().max() < 1e-4
    assert made.facts["distinct_2"] > 0.9


class Deaf(Halves):
    """Has no finite opinion of tokens where a prompt speaks of birds."""

    name = "deaf"

    def token_rewards(self, conversations):
        birds = ["two birds" in prompt.messages[0].content for prompt, _ in conversations]
        sizes = [len(self.encode(conversation).ids) for conversation in conversations]
        return [torch.full((size,), float("nan") if bird else 0.5) for size, bird in zip(sizes, birds, strict=True)]


def test_prompts_whose_tokens_cannot_be_paid_are_left_out_too(sampler, files):
    """Of six prompts two speak of birds; without `mask` the run ends with the model's name."""
    birds = sum("two birds" in prompt.messages[0].content for prompt in PROMPTS[:6])
    assert 0 < birds < 6
    rewards = Rewards(None, 1.0, load_rules([f"{files}/rules.py:length"]), {}, FaultSettings(then="mask"))
    config = PolicyConfig(algorithm=PPO(), num_answers=2, batch_size=6)
    dense = Dense(Deaf(), "attributions", Encoder(tokenizer()))
    made = Rollouts(sampler, PROMPTS[:6], rewards, config, None, dense)
    batch = made.next()["main"]
    assert len(batch.prompts) == 6 - birds and made.facts["prompts_without_rewards"] == birds
    assert batch.token_rewards.isfinite().all()
    assert batch.token_rewards.sum(1).tolist() == pytest.approx(batch.rewards.tolist(), abs=1e-4)
    rewards.faults = FaultSettings()
    with pytest.raises(InputError, match=r"deaf, at tokens, gives 4 of 12 answers .* no finite number"):
        made.next()


def test_prompts_whose_environment_fails_are_left_out_too(sampler, files, capsys):
    """Also where it is watched; without `mask` the run ends with the environment's name."""
    birds = sum("two birds" in prompt.messages[0].content for prompt in PROMPTS[:4])
    assert 0 < birds < 4
    faults = FaultSettings(then="mask")
    made = source(sampler, files, REINFORCE(), rules=["length"], game="Shy", faults=faults)
    made.prompts = Shuffled(PROMPTS[:4], 4, seed=0)
    batch = made.next()["main"]
    assert len(batch.prompts) == 4 - birds and made.facts["prompts_without_rewards"] == birds
    assert batch.token_rewards.sum(1).tolist() == pytest.approx(batch.rewards.tolist(), abs=1e-4)
    said = capsys.readouterr().out
    assert said.count("a prompt goes without rewards: environment") == 1 and "step: TimeoutError: gone" in said
    episodes = episodes_at(sampler, f"{files}/game.py:Shy", 3, faults)
    assert Watch(episodes, PROMPTS[:4], lambda asked, told: [0.0] * len(asked), seed=0).look() == {}
    assert "--oracle: no look this time: environment" in capsys.readouterr().out
    made = source(sampler, files, REINFORCE(), game="Shy")
    made.prompts = Shuffled(PROMPTS[:4], 4, seed=0)
    with pytest.raises(InputError, match=r"Shy, step: TimeoutError: gone \(or go on .*--faults.then mask\)"):
        made.next()


def test_attributions_count_as_much_as_the_model_does(sampler, files):
    """A reward model whose tokens sum to its reward pays a weight of 0.5 each half, and nothing is left over."""

    class Sums(Halves):
        def outputs_encoded(self, encoded):
            return torch.tensor([[0.5 * len(item.ids)] for item in encoded])

    halves = [source(sampler, files, PPO(), weight=w, model=Sums(), dense="attributions").next() for w in (1.0, 0.5)]
    whole, half = (batch["main"].token_rewards for batch in halves)
    assert half.tolist() == (0.5 * whole).tolist() and (whole > 0).any()


@pytest.mark.parametrize("dense", ["", "implicit:{0}:{0}"])
def test_a_model_beside_the_reward_pays_in_its_own_units(dense):
    model = Halves()
    config = PolicyConfig(
        algorithm=PPO(),
        reward_weight=0.5,
        dense=DenseSettings(kind="attributions", model=dense.format(tiny_model())),
    )
    paying = open_dense(config, Rewards(model, 0.5, None, {}), Encoder(tokenizer()))
    assert paying.weight == (1.0 if dense else 0.5)


def test_prompts_whose_answers_are_all_left_out_do_not_fill_a_batch(sampler, files):
    """Their rewards differ, but all answers are cut: sampled on, and said."""
    short = PolicySampler(sampler.model, sampler.encoder, SamplingSettings(max_tokens=1))
    short.stop = ()
    for cut_answers, rounds, equal in (("keep", 1, 0), ("mask", 4, 1)):
        algorithm = GRPO(dynamic_sampling=True)
        made = source(short, files, algorithm, rules=["first"], cut_answers=cut_answers)
        made.next()
        assert made.facts["share_cut"] == 1
        assert (made.facts["sampling_rounds"], made.facts["frac_reward_zero_std"]) == (rounds, equal)


def test_dynamic_sampling_sees_what_the_environment_pays(sampler, files):
    differing = source(sampler, files, GRPO(dynamic_sampling=True), game="Game")
    differing.next()
    assert differing.facts["frac_reward_zero_std"] == 0
    same = source(sampler, files, GRPO(dynamic_sampling=True), game="Even")
    same.next()
    assert same.facts["frac_reward_zero_std"] == 1 and same.facts["sampling_rounds"] == 4


def test_a_baseline_of_the_group_is_taken_off_what_tokens_are_paid(sampler, files):
    batch = source(sampler, files, REINFORCEPP(), game="Game").next()["main"]
    level = torch.stack([batch.rewards[i : i + 3].mean() for i in range(0, 12, 3)]).repeat_interleave(3)
    method = REINFORCEPP(kl_coef=0.0, track_kl=False, baseline="group")
    paid = method.token_rewards(batch, batch.rewards - level)
    assert paid.sum(1).tolist() == pytest.approx((batch.rewards - level).tolist(), abs=1e-4)
    assert torch.equal(REINFORCE(kl_coef=0.0, track_kl=False).token_rewards(batch), batch.token_rewards)


def test_the_watched_prompts_are_played_as_the_others_are(sampler, files):
    seen = []

    def oracle(asked, responses):
        seen.extend(len(response) for response in responses)
        return [0.0] * len(asked)

    episodes = episodes_at(sampler, f"{files}/game.py:Game", 3)
    Watch(episodes, PROMPTS[:4], oracle, seed=0).look()
    assert max(seen) == 3  # the policy's turn, the environment's, the policy's


def test_many_watched_prompts_are_answered_in_portions(sampler, monkeypatch):
    """No more at once than fit a decoding step, and one generator for all."""
    sizes, real = [], PolicySampler.draw

    def draw(self, asked, *rest, **named):
        sizes.append(len(asked))
        return real(self, asked, *rest, **named)

    monkeypatch.setattr(PolicySampler, "draw", draw)
    monkeypatch.setattr("assay.stages.online.ANSWERS_AT_ONCE", 4)
    seen = []
    Watch(sampler, PROMPTS[:10], lambda asked, said: seen.extend(asked) or [1.0] * len(asked), seed=0).look()
    assert sizes == [4, 4, 2] and [p.id for p in seen] == [p.id for p in PROMPTS[:10]]


def test_batches_of_cut_answers_alone_teach_a_moving_baseline_at_most(files, tmp_path):
    """With `mask` nothing of theirs is learned, whatever their rewards were."""
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--cut_answers", "mask"]
    words += ["--data.path", write(tmp_path / "p.jsonl", prompts(8)), "--rules", f"{files}/rules.py:length"]
    words += ["--algorithm.name", "reinforce", "--num_answers", 1, "--batch_size", 1, "--steps", 24]
    words += ["--sampling.max_tokens", 4, "--dtype", "float32", "--checkpoints.every", 0, "--optimiser.lr", 1e-4]
    assert main([str(word) for word in words]) == OK
    rows = RunDirectory(tmp_path / "run").read_metrics("policy")
    assert {row["share_cut"] for row in rows} == {0.0, 1.0}
    assert all(row["grad_norm"] == 0 for row in rows if row["share_cut"] == 1)


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_its_batch(files, tmp_path, capsys, monkeypatch):
    """Rewards that fp32 can hold and their differences cannot, were they not refused."""
    monkeypatch.setattr("assay.rewards.rules.LARGEST", math.inf)
    (files / "rules.py").write_text(
        "def huge(prompts, responses, **_):\n    return [3e38 * (-1) ** i for i in range(len(responses))]\n"
    )
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--rules", f"{files}/rules.py:huge"]
    words += ["--data.path", write(tmp_path / "p.jsonl", prompts(8)), "--num_answers", 2, "--batch_size", 2]
    words += ["--sampling.max_tokens", 4, "--dtype", "float32"]
    assert main([str(word) for word in words]) == FAULT
    told = capsys.readouterr().err.strip()
    path = tmp_path / "run" / "checkpoints" / "policy" / "failed-step-1.safetensors"
    assert told.startswith("assay policy: step 1: the loss is") and told.endswith(str(path)) and "\n" not in told
    assert load_file(path)["main.rewards"].abs().tolist() == pytest.approx([3e38] * 4)


def test_a_reward_model_that_is_not_finite_ends_the_run(tmp_path, refused):
    """In one line, with the policy as it was."""
    network = random_network(LlamaForSequenceClassification, seed=1)
    network.score.weight.data.fill_(float("nan"))
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--reward", save(network, tmp_path / "nan")]
    words += ["--data.path", write(tmp_path / "p.jsonl", prompts(4)), "--ignore_gate", "true", "--batch_size", 2]
    told = refused(*words, "--sampling.max_tokens", 4, "--dtype", "float32")
    assert "rewards/model gives 8 of 8 answers a reward that is no finite number (the first, of " in told
    assert not (tmp_path / "run" / "policy").exists()


ONLINE = [name for name, kind in ALGORITHMS.items() if kind.data == "rollouts"]


@pytest.fixture(scope="module")
def talk(sampler):
    """Prompts that the policy has nothing to say to, and prompts that it has something to say to."""
    greedy = PolicySampler(sampler.model, sampler.encoder, SamplingSettings(max_tokens=6, top_k=1))
    asked = [user_prompt(f"Name {place} things.") for place in range(60)]
    drawn = greedy.draw(asked, 1, torch.Generator().manual_seed(0)).rollouts
    silent = [rollout.ids == (sampler.encoder.eos,) for rollout in drawn]
    assert 2 <= sum(silent) <= 58
    return tuple(
        [r.prompt.to_json() for r, s in zip(drawn, silent, strict=True) if s is kind] for kind in (True, False)
    )


def one_step(tmp_path, files, name, asked, *words):
    """The metrics of one step at a temperature that leaves little to chance."""
    told = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--rules", f"{files}/rules.py:length"]
    told += ["--data.path", write(tmp_path / "p.jsonl", asked), "--num_answers", 1 if name == "xpo" else 2]
    told += ["--algorithm.name", name, "--sampling.temperature", 0.01, "--batch_size", 4, "--steps", 1]
    told += ["--critic.alone", 0] if name == "ppo_max" else []
    assert main([str(word) for word in [*told, "--dtype", "float32", *words]]) == OK
    (row,) = RunDirectory(tmp_path / "run").read_metrics("policy")
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    return row


@pytest.mark.parametrize("name", ONLINE)
def test_empty_answers_are_answers(name, files, talk, tmp_path):
    """Only the end of sequence, which is what is trained on."""
    row = one_step(tmp_path, files, name, talk[0], "--sampling.max_tokens", 6)
    assert row["length_mean"] == 1 and row["share_cut"] == 0 and row["reward"] == 0


@pytest.mark.parametrize("name", ONLINE)
def test_a_batch_of_cut_answers_alone_teaches_nothing(name, files, talk, tmp_path):
    """And is told to be one."""
    row = one_step(tmp_path, files, name, talk[1], "--sampling.max_tokens", 1, "--cut_answers", "mask")
    assert row["length_mean"] == 1 and row["share_cut"] == 1 and row["grad_norm"] == 0


def test_an_edited_environment_is_another_run(files, tmp_path, capsys):
    """And the same file under another name of its folder is not."""
    asked = write(tmp_path / "p.jsonl", [p.to_json() for p in (user_prompt("Hello."), user_prompt("How are you?"))])
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--data.path", asked, "--steps", 2]
    words += ["--sampling.max_tokens", 4, "--batch_size", 2, "--dtype", "float32", "--checkpoints.every", 1]
    words += ["--algorithm.kl_coef", 0]

    def go(place):
        return main([str(word) for word in [*words, "--environment", place]])

    assert go(f"{files}/game.py:Game") == OK
    assert go(f"{files}/../{files.name}/game.py:Game") == OK
    (files / "game.py").write_text(GAME.replace("self.left = 2", "self.left = 3"))
    capsys.readouterr()
    assert go(f"{files}/game.py:Game") == WRONG_INPUT
    assert "reward.environment" in capsys.readouterr().err
