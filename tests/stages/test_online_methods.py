"""Every method that learns from its own answers, through the command line, on a tiny model."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from assay.algorithms import ALGORITHMS
from assay.cli import OK, WRONG_INPUT, main
from assay.engine.truncation import nucleus, unpack_bits
from assay.report.run import RunDirectory, read_json
from assay.rewards.model import RewardModel
from assay.settings import InputError
from assay.stages.learners import load_model
from assay.train.loop import Training
from tiny import demonstrations, prompts, tiny_model, tiny_reward, write

ONLINE = [name for name, kind in ALGORITHMS.items() if kind.data == "rollouts"]


CONSTANT = ["--optimiser.schedule", "constant", "--optimiser.warmup", "0", "--optimiser.lr", "1e-4"]
STOPPING = ["--stop.kl", "0.01", "--stop.smoothing", "0", "--steps", "30", *CONSTANT]


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("data") / "prompts.jsonl", prompts(8))


def command(run, asked, name, *words, reward=True) -> list[str]:
    told = ["policy", "--run", str(run), "--model", tiny_model(), "--data.path", asked, "--algorithm.name", name]
    told += ["--reward", tiny_reward(), "--ignore_gate", "true"] if reward else []
    told += ["--num_answers", "1" if name == "xpo" else "2", "--batch_size", "4", "--steps", "4"]
    told += ["--optimiser.lr", "0.003", "--sampling.max_tokens", "6", "--dtype", "float32", "--checkpoints.every", "0"]
    return [*told, *map(str, words)]


def train(run, asked, name, *words, reward=True) -> int:
    return main(command(run, asked, name, *words, reward=reward))


@pytest.mark.parametrize("name", ONLINE)
def test_it_trains(name, asked, tmp_path):
    """Finite metrics, a KL that begins at 0, and another policy at the end."""
    assert train(tmp_path, asked, name, *(["--critic.alone", "0"] if name == "ppo_max" else [])) == OK
    rows = RunDirectory(tmp_path).read_metrics("policy")
    assert len(rows) == 4 and all(math.isfinite(v) for row in rows for v in row.values() if v != "policy")
    assert abs(rows[0]["kl"]) < 1e-4 and rows[-1]["grad_norm"] > 0
    assert abs(rows[0]["sampler_gap"]) < 1e-5
    before = load_file(tiny_model() + "/model.safetensors")
    after = load_file(tmp_path / "policy" / "model.safetensors")
    moved = [float((after[key] - before[key].float()).abs().max()) for key in after if key in before]
    assert max(moved) > 1e-3


@pytest.mark.parametrize("kind", ["separate", "shared", "adapter"])
def test_critics_of_every_kind_learn_the_return(kind, asked, tmp_path):
    words = ["--critic.kind", kind, "--steps", "40", "--algorithm.vf_coef", "1", "--optimiser.schedule", "constant"]
    words += ["--lora.rank", "4"] if kind == "adapter" else []
    assert train(tmp_path, asked, "ppo", *words) == OK
    losses = [row["value_loss"] for row in RunDirectory(tmp_path).read_metrics("policy")]
    assert losses[-1] < 0.7 * losses[0]


def test_a_critic_alone_leaves_the_policy_as_it_is(asked, tmp_path):
    words = ["--critic.alone", "4", "--critic.start", "reward", "--steps", "1", "--algorithm.num_epochs", "1"]
    assert train(tmp_path, asked, "ppo", *words) == OK
    rows = RunDirectory(tmp_path).read_metrics("policy")
    assert len(rows) == 5 and "kl" not in rows[3] and abs(rows[4]["kl"]) < 1e-6
    assert rows[3]["value_loss"] < rows[0]["value_loss"]


def test_ppo_max_begins_with_its_critic(asked, tmp_path):
    """From the reward model, trained alone for 16 steps, unless it is told otherwise; plain PPO from the policy.

    Where rewards are normalised or cut it says 0 at first; its head knows the raw ones.
    """
    assert train(tmp_path / "max", asked, "ppo_max", "--steps", "1") == OK
    rows = RunDirectory(tmp_path / "max").read_metrics("policy")
    assert len(rows) == 17 and "kl" not in rows[15] and abs(rows[16]["kl"]) < 1e-6
    assert rows[0]["value"] == 0 and rows[1]["value"] != 0
    for norm, clip, known in (("none", "0", True), ("none", "0.8", False), ("scale", "0", False)):
        reshaped = ["--algorithm.reward_norm", norm, "--algorithm.reward_clip", clip, "--critic.alone", "1"]
        assert train(tmp_path / norm / clip, asked, "ppo_max", *reshaped, "--steps", "1") == OK
        assert (RunDirectory(tmp_path / norm / clip).read_metrics("policy")[0]["value"] != 0) == known
    told = ["--critic.start", "policy", "--critic.alone", "0"]
    assert train(tmp_path / "told", asked, "ppo_max", "--steps", "1", *told) == OK
    (row,) = RunDirectory(tmp_path / "told").read_metrics("policy")
    assert row["value"] == 0
    rules = tmp_path / "rules.py"
    rules.write_text("def one(prompts, responses, **_):\n    return [float(len(r)) for r in responses]\n")
    words = ["--rules", f"{rules}:one", "--critic.alone", "1", "--steps", "1"]
    assert train(tmp_path / "rules", asked, "ppo_max", *words, reward=False) == OK  # no reward model to start from
    assert RunDirectory(tmp_path / "rules").read_metrics("policy")[0]["value"] == 0
    assert train(tmp_path / "ppo", asked, "ppo", "--steps", "1") == OK
    assert RunDirectory(tmp_path / "ppo").read_metrics("policy")[0]["value"] == 0


def test_a_further_stream_of_text_is_learned_beside(asked, tmp_path):
    text = write(tmp_path / "text.jsonl", demonstrations(6))
    (tmp_path / "with").mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(f"streams:\n  ptx:\n    path: {text}\n")
    words = ["--config", config, "--algorithm.ptx_coef", "1", "--algorithm.num_epochs", "2", "--steps", "30"]
    assert train(tmp_path / "with", asked, "ppo", *words) == OK
    rows = RunDirectory(tmp_path / "with").read_metrics("policy")
    assert rows[-1]["ptx/nll"] < rows[0]["ptx/nll"]


REFUSED = [
    (["p3o", "--num_answers", "3"], "compares answers two by two"),
    (["xpo", "--num_answers", "2"], "samples 1 of its own a prompt"),
    (["ppo", "--algorithm.num_minibatches", "9"], "a batch has 4 prompts to divide"),
    (["rloo", "--critic.kind", "shared"], "rloo has no critic"),
    (["ppo", "--critic.kind", "adapter"], "--lora.rank"),
    (["ppo", "--critic.kind", "shared", "--critic.lr", "0.1"], "none of its own"),
    (["nlpo", "--sampling.top_p", "0.5"], "has a cut of its own"),
    (["ppo", "--dense.kind", "rewards"], "no rewards for tokens"),
    (["rloo", "--dense.kind", "rewards"], "credits whole answers"),
    (["rloo", "--stop.uncertainty", "2"], "has one opinion"),
    (["rloo", "--algorithm.kl_coef", "0", "--algorithm.track_kl", "false", "--stop.kl", "2"], "does not measure it"),
    (["rloo", "--algorithm.kl_coef", "0", "--algorithm.track_kl", "false", "--reference.every", "2"], "no reference"),
    (["ppo", "--algorithm.target_kl", "2", "--critic.alone", "2"], "would sink"),
    (["ppo", "--critic.lr", "1e-4", "--optimiser.lr", "0"], "a multiple inside"),
    (["ppo_max", "--algorithm.target_kl", "2"], "would sink"),
    (["ppo", "--algorithm.reward_clip=-1"], "algorithm.reward_clip must be at least 0"),
    (["xpo", "--algorithm.v_max=-1"], "algorithm.v_max must be at least 0"),
    (["xpo", "--algorithm.alpha=-1"], "none below 0"),
    (["reinforce", "--algorithm.decay", "1"], "algorithm.decay must be at least 0 and less than 1"),
    (["ppo", "--algorithm.lam", "1.5"], "algorithm.lam must be at most 1"),
    (["rloo", "--stop.patience", "0"], "must be at least 1"),
    (["sppo", "--algorithm.beta", "0"], "must be more than 0"),
    (["reinforce_pp", "--algorithm.baseline", "group", "--num_answers", "1"], "compares at least 2 answers"),
    (["rloo", "--reward_weights", "1", "2"], "no objectives to weigh"),
    (["rloo", "--sampling.top_p", "1.5"], "must be at most 1"),
    (["p3o", "--algorithm.kl_in", "loss"], "algorithm.kl_in"),
    (["online_dpo", "--algorithm.kl_coef", "0.1"], "online_dpo charges no KL beside its beta"),
    (["sppo", "--algorithm.kl_coef", "0.1"], "sppo charges no KL beside its beta"),
    (["apa", "--algorithm.target_kl", "1"], "needs a coefficient to begin with"),
    (["ppo_max", "--dense.kind", "potentials"], "are about rewards of whole answers"),
    (["rloo", "--max_tokens", "64"], "--max_tokens bounds what is read"),
    (["rloo", "--criterion", "The shorter the better."], "--criterion does nothing without --judge"),
    (["ppo", "--dense.model", "smollm2-135m-instruct"], "--dense.model does nothing without --dense.kind"),
    (["rloo", "--reference.share", "0.5"], "--reference.share does nothing without --reference.every"),
    (["rloo", "--cut_penalty", "3"], "--cut_penalty does nothing without --cut_answers penalty"),
    (["rloo", "--max_turns", "2"], "--max_turns does nothing without --environment"),
    (["xpo", "--reference.every", "2"], "xpo compares all answers so far with one reference"),
    (["ppo", "--dense.kind", "rewards", "--dense.model", "no"], "leave --dense.model out"),
    (["rloo", "--sampling.max_tokens", "300"], "--sampling.max_tokens 300"),
    (["rloo", "--reward_penalty", "4"], "--reward_penalty does nothing without --reward_rule"),
    (["reinforce", "--algorithm.kl_horizon", "9"], "kl_horizon does nothing without --algorithm.target_kl"),
    (["ppo", "--algorithm.kl_estimator", "k3"], "kl_estimator does nothing without --algorithm.kl_in loss"),
    (["xpo", "--num_answers", "1", "--stop.kl", "2"], "--stop.kl: xpo with these settings does not measure it"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(words, said, asked, tmp_path, refused):
    assert said in refused(*command(tmp_path, asked, *words))


def test_answers_cut_by_length_are_paid_less_or_not_read(asked, tmp_path):
    seen = {}
    for told in ("keep", "penalty", "mask"):
        words = ["--cut_penalty", "3"] if told == "penalty" else []
        assert train(tmp_path / told, asked, "rloo", "--cut_answers", told, *words) == OK
        seen[told] = RunDirectory(tmp_path / told).read_metrics("policy")[0]
    assert 0 < seen["keep"]["share_cut"] <= 1
    assert seen["penalty"]["reward"] == pytest.approx(seen["keep"]["reward"] - 3 * seen["keep"]["share_cut"], abs=1e-5)
    assert seen["mask"]["grad_norm"] != seen["keep"]["grad_norm"]


def test_a_limit_ends_the_run_at_the_best_weights(asked, tmp_path, capsys):
    """KL within 0.01 nats is soon passed: the policy is the last one whose own answers were not suspicious.

    A step's KL is that of the policy before it; two steps in a row were beyond the limit.
    """
    assert train(tmp_path, asked, "rloo", *STOPPING) == OK
    place = RunDirectory(tmp_path)
    rows = place.read_metrics("policy")
    assert len(rows) < 30 and "stop.kl" in capsys.readouterr().out
    notes = read_json(place.provenance)["policy"]
    assert [row["kl"] > 0.01 for row in rows[-3:]] == [False, True, True]
    assert notes["kept_step"] == len(rows) - 3 and "its limit 0.01" in notes["stopped"]
    assert train(tmp_path / "kept", asked, "rloo", "--steps", notes["kept_step"], *CONSTANT) == OK
    assert_same_policy(tmp_path, tmp_path / "kept")


def test_further_updates_on_a_batch_are_no_further_time_beyond_a_limit(asked, tmp_path):
    """Four updates a batch, each of which measures the entropy: the second batch beyond the limit ends the run."""
    words = ["--stop.entropy", "99", "--steps", "30", "--algorithm.num_epochs", "2", "--algorithm.num_minibatches", "2"]
    assert train(tmp_path, asked, "ppo", *words) == OK
    place = RunDirectory(tmp_path)
    rows, notes = place.read_metrics("policy"), read_json(place.provenance)["policy"]
    assert [row["step"] for row in rows if "length_mean" in row] == [1, 5] and rows[-1]["step"] == 5
    assert all("entropy" in row for row in rows)
    assert notes["kept_step"] == 0 and "stop.entropy" in notes["stopped"]


def test_a_run_without_a_reward_model_has_no_uncertainty_to_limit(asked, tmp_path, refused):
    (tmp_path / "same.py").write_text("def same(prompts, responses, **_):\n    return [1.0] * len(responses)\n")
    words = ["--rules", f"{tmp_path}/same.py:same", "--stop.uncertainty", "2"]
    assert "there is no reward model" in refused(*command(tmp_path, asked, "rloo", *words, reward=False))


@pytest.mark.parametrize(
    "words",
    [
        ["--reward_rule", "min"],
        ["--reward_weights", "0.2", "0.8"],
        ["--reward_weight", "7"],
        ["--principles.path", "no"],
        ["--principles.told", "x"],
    ],
)
def test_settings_of_a_reward_model_that_is_not_there_are_refused(words, asked, tmp_path, refused):
    (tmp_path / "same.py").write_text("def same(prompts, responses, **_):\n    return [1.0] * len(responses)\n")
    told = ["--rules", f"{tmp_path}/same.py:same", *words]
    assert f"{words[0]}: there is no reward model" in refused(*command(tmp_path, asked, "rloo", *told, reward=False))


def test_what_is_not_audited_is_refused_before_a_model_is_looked_for(asked, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("assay.stages.policy.resolve_model", lambda _: pytest.fail("looked for a model"))
    told = [word for word in command(tmp_path, asked, "rloo") if word not in ("--ignore_gate", "true")]
    assert "was not audited" in refused(*told)


@pytest.mark.parametrize("name", ["nlpo", "nash_md"])
def test_methods_of_two_models_refuse_families_that_share_no_prompts(name, asked, tmp_path, refused, monkeypatch):
    def unshared(*arguments):
        model = load_model(*arguments)
        model.shares_prompts = False
        return model

    monkeypatch.setattr("assay.stages.policy.load_model", unshared)
    monkeypatch.setattr("assay.stages.policy.make_learners", lambda *_, **__: pytest.fail("went on"))
    assert f"{name} samples from two models at once" in refused(*command(tmp_path, asked, name))


def test_prompts_that_the_critic_cannot_read_are_told_before_training(asked, tmp_path, refused):
    """Its context is shorter than the policy's."""
    short = tmp_path / "short"
    shutil.copytree(tiny_model(), short)
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 8}))
    said = refused(*command(tmp_path / "run", asked, "ppo", "--critic.start", short))
    assert "do not fit the 8 tokens that the critic reads" in said


def test_the_critics_start_is_known_by_its_weights(asked, tmp_path, capsys):
    """The same model elsewhere goes on; another one in its place does not."""
    copied = tmp_path / "critic"
    shutil.copytree(tiny_reward(), copied)
    words = ["--critic.start", str(copied), "--steps", "2"]
    assert train(tmp_path / "run", asked, "ppo", *words) == OK
    assert train(tmp_path / "run", asked, "ppo", "--critic.start", tiny_reward(), "--steps", "2") == OK
    capsys.readouterr()
    assert train(tmp_path / "run", asked, "ppo", "--critic.start", tiny_model(), "--steps", "2") == WRONG_INPUT
    assert "config.critic.start" in capsys.readouterr().err


def test_a_limit_that_is_passed_at_once_keeps_the_policy_it_began_with(asked, tmp_path, capsys):
    words = ["--steps", "30", "--stop.entropy", "1e9"]
    assert train(tmp_path, asked, "rloo", *words) == OK
    assert read_json(RunDirectory(tmp_path).provenance)["policy"]["kept_step"] == 0
    assert train(tmp_path / "unmoved", asked, "rloo", "--steps", "1", "--optimiser.lr", "0") == OK
    assert_same_policy(tmp_path, tmp_path / "unmoved")


def assert_same_policy(one, other):
    first, second = (load_file(run / "policy" / "model.safetensors") for run in (one, other))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_run_that_died_ends_where_it_would_have_ended(asked, tmp_path, monkeypatch, every):
    """The counts, what they compare with and the kept weights are those of the step that it goes on from."""
    assert train(tmp_path / "whole", asked, "rloo", *STOPPING) == OK
    notes = read_json(RunDirectory(tmp_path / "whole").provenance)["policy"]
    last = len(RunDirectory(tmp_path / "whole").read_metrics("policy"))
    told = [*STOPPING, "--checkpoints.every", str(every)]
    real = Training.one_step

    def one_step(self):
        if self.step + 1 == last:
            raise Died
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "one_step", one_step)
        with pytest.raises(Died):
            train(tmp_path / "died", asked, "rloo", *told)
    assert train(tmp_path / "died", asked, "rloo", *told) == OK
    found = read_json(RunDirectory(tmp_path / "died").provenance)["policy"]
    assert (found["kept_step"], found["stopped"]) == (notes["kept_step"], notes["stopped"])
    assert_same_policy(tmp_path / "whole", tmp_path / "died")


class Died(BaseException):
    """What a test raises where a process would be killed."""


def test_a_higher_limit_goes_on_where_the_lower_one_ended_the_run(asked, tmp_path):
    assert train(tmp_path / "one", asked, "rloo", *STOPPING) == OK
    higher = [*STOPPING[:1], "100", *STOPPING[2:]]
    assert train(tmp_path / "one", asked, "rloo", *higher) == OK
    assert train(tmp_path / "other", asked, "rloo", *higher) == OK
    assert_same_policy(tmp_path / "one", tmp_path / "other")


def test_the_same_command_after_a_stop_changes_nothing(asked, tmp_path):
    assert train(tmp_path, asked, "rloo", *STOPPING) == OK
    first = load_file(tmp_path / "policy" / "model.safetensors")
    num = len(RunDirectory(tmp_path).read_metrics("policy"))
    assert train(tmp_path, asked, "rloo", *STOPPING) == OK
    second = load_file(tmp_path / "policy" / "model.safetensors")
    assert len(RunDirectory(tmp_path).read_metrics("policy")) == num
    assert all((first[name] == second[name]).all() for name in first)


def test_a_separate_critic_with_adapters_is_the_seeds(asked, tmp_path):
    for name in ("one", "other"):
        torch.randn(3)  # what ran before in the process has no say
        assert train(tmp_path / name, asked, "ppo", "--lora.rank", "4", "--steps", "2") == OK
    assert_same_policy(tmp_path / "one", tmp_path / "other")
    rows = [RunDirectory(tmp_path / name).read_metrics("policy") for name in ("one", "other")]
    assert [row["value_loss"] for row in rows[0]] == [row["value_loss"] for row in rows[1]]


def test_nash_md_has_its_reference_for_the_mixture(asked, tmp_path):
    words = ["--algorithm.kl_coef", "0", "--algorithm.track_kl", "false", "--steps", "1"]
    assert train(tmp_path, asked, "nash_md", *words) == OK


OFFLINE = [
    (["--environment", "game.py:Game"], "--environment"),
    (["--dense.kind", "potentials"], "--dense.kind"),
    (["--judge", "smollm2-135m-instruct"], "--judge"),
    (["--principles.path", "principles.jsonl", "--principles.told", "kind"], "--principles.path"),
    (["--cut_answers", "mask"], "--cut_answers"),
    (["--stop.kl", "2"], "--stop.kl"),
    (["--num_answers", "8"], "--num_answers"),
    (["--reward_weight", "3"], "--reward_weight"),
    (["--principles.told", "kind"], "--principles.told"),
]


@pytest.mark.parametrize(("words", "said"), OFFLINE, ids=[said for _, said in OFFLINE])
def test_what_only_online_methods_read_is_refused_elsewhere(words, said, tmp_path, capsys):
    told = ["policy", "--run", str(tmp_path), "--data.path", "pairs.jsonl", "--algorithm.name", "dpo", *words]
    assert main(told) == WRONG_INPUT
    assert f"{said}: dpo" in capsys.readouterr().err


FAULTY = '''
import time

def rewards(prompts, responses, **columns):
    """The prompts with "fox" cannot be judged."""
    if any("fox" in prompt for prompt in prompts):
        {fault}
    return [float(len(text)) for text in responses]
'''


@pytest.mark.parametrize("fault", ["raise OSError('no answer')", "time.sleep(60)"], ids=["raises", "hangs"])
def test_prompts_whose_rewards_fail_are_left_out_and_counted(fault, tmp_path):
    rows = [{"prompt": f"What does the {'fox' if i % 4 == 0 else 'dog'} say, {i}?"} for i in range(8)]
    (tmp_path / "faulty.py").write_text(FAULTY.format(fault=fault))
    words = ["--rules", f"{tmp_path}/faulty.py:rewards", "--faults.then", "mask", "--faults.timeout", "2"]
    words += ["--steps", "2"]
    assert train(tmp_path / "run", write(tmp_path / "p.jsonl", rows), "rloo", *words, reward=False) == OK
    seen = RunDirectory(tmp_path / "run").read_metrics("policy")
    assert sum(row.get("prompts_without_rewards", 0) for row in seen) == 2


def test_answers_that_the_reward_model_cannot_read_are_left_out_and_counted(asked, tmp_path, monkeypatch, refused):
    """Whatever the reason: that of one prompt costs no other, and without leave to go on the run ends with advice."""
    real = RewardModel.encode

    def encode(self, conversation):
        if "two birds" in conversation[0].messages[0].content:
            raise InputError("the assistant's text contains '<s>'")
        return real(self, conversation)

    monkeypatch.setattr(RewardModel, "encode", encode)
    words = ["--steps", "2", "--faults.then", "mask"]
    assert train(tmp_path / "run", asked, "rloo", *words) == OK
    seen = RunDirectory(tmp_path / "run").read_metrics("policy")
    assert sum(row.get("prompts_without_rewards", 0) for row in seen) == 3  # of the eight prompts
    told = refused(*command(tmp_path / "stop", asked, "rloo", "--steps", "2"))
    assert "contains '<s>'" in told and "--faults.then mask" in told


COMPARE = ("rloo", "grpo", "p3o", "reinforce_pp", "remax", "online_dpo", "sppo")  # answers with answers, nothing else


@pytest.mark.parametrize("name", ONLINE)
def test_equal_rewards_teach_nothing(name, asked, tmp_path):
    """No NaN, and the share of such prompts is told; to methods that compare answers they say nothing."""
    (tmp_path / "same.py").write_text("def same(prompts, responses, **_):\n    return [1.0] * len(responses)\n")
    words = ["--rules", f"{tmp_path}/same.py:same", "--steps", "1"]
    words += ["--critic.alone", "0"] if name == "ppo_max" else []
    words += ["--algorithm.kl_coef", "0"] if hasattr(ALGORITHMS[name](), "kl_coef") and name != "nash_md" else []
    assert train(tmp_path, asked, name, *words, reward=False) == OK
    (row,) = RunDirectory(tmp_path).read_metrics("policy")
    assert row["frac_reward_zero_std"] == 1 and all(math.isfinite(v) for v in row.values() if v != "policy")
    assert name not in COMPARE or row["grad_norm"] < 1e-6


def test_nlpo_samples_among_what_the_policy_of_every_third_step_finds_likely(asked, tmp_path, monkeypatch):
    """The mask's weights keep every bit between, and what can be drawn is its nucleus, not the policy's."""
    real, seen = Training.one_step, []

    def weights(learner):
        return {name: p.detach().clone() for name, p in learner.model.named_parameters()}

    def nuclei(self, role):
        logits = self.learners[role].model(self.buffer.main, (), {"all": lambda x, columns: x}).vocabulary["all"]
        return nucleus(logits.flatten(0, 1), 0.6, 0).view_as(logits)

    def shared(one, other):
        return ((one & other).sum() / (one | other).sum()).item()

    def one_step(self):
        found = real(self)
        seen.append({role: weights(self.learners[role]) for role in ("policy", "mask")})
        if self.step + 1 in (4, 5):  # the mask is what it was when this batch was sampled
            allowed = unpack_bits(self.buffer.main.allowed, nuclei(self, "mask").shape[-1])
            where = self.buffer.main.mask
            same = [shared(allowed[where], nuclei(self, role)[where]) for role in ("mask", "policy")]
            assert same[0] > 0.99 > 0.9 > same[1]  # a token at the border may be in by rounding
        return found

    monkeypatch.setattr(Training, "one_step", one_step)
    words = ["--algorithm.sync", 3, "--algorithm.top_p", 0.6, "--algorithm.num_epochs", 1, *CONSTANT]
    words += ["--algorithm.num_minibatches", 1, "--steps", 7, "--optimiser.lr", "1e-2"]
    assert train(tmp_path, asked, "nlpo", *words) == OK
    base = seen[0]["mask"]
    for step, now in enumerate(seen, 1):
        wanted = base if step < 3 else seen[step // 3 * 3 - 1]["policy"]
        assert all(torch.equal(p, wanted[name]) for name, p in now["mask"].items())
    assert any(not torch.equal(p, base[name]) for name, p in seen[2]["policy"].items())


@pytest.mark.parametrize(("name", "num"), [("online_dpo", 2), ("xpo", 1), ("nash_md", 1), ("p3o", 4), ("rloo", 2)])
def test_a_judge_compares_answers_two_by_two(name, num, asked, tmp_path):
    words = ["--judge", tiny_model(), "--criterion", "The shorter the better.", "--num_answers", num, "--steps", "2"]
    assert train(tmp_path, asked, name, *words, reward=False) == OK
    first = RunDirectory(tmp_path).read_metrics("policy")[0]
    assert first["rewards/judge/mean"] == pytest.approx(first["reward"])
    if num > 1:
        assert first["reward"] == pytest.approx(0, abs=1e-6)  # half the log-odds each, plus and minus
    assert first["grad_norm"] > 0


@pytest.mark.parametrize(("name", "num"), [("rloo", 4), ("remax", 2), ("grpo", 3)])
def test_a_judge_needs_two_answers(name, num, asked, tmp_path, capsys):
    words = ["--judge", tiny_model(), "--num_answers", num]
    assert train(tmp_path, asked, name, *words, reward=False) == WRONG_INPUT
    assert "--judge compares two answers" in capsys.readouterr().err
