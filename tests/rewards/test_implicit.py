"""A policy in a reward model's place: the truth where it can be enumerated, plain transformers where it cannot."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from assay.cli import OK, WRONG_INPUT, main
from assay.config import AuditConfig
from assay.engine.learner import Learner
from assay.lab.tabular import TabularModel, batch_of
from assay.lab.world import World
from assay.rewards.implicit import ImplicitReward, ImplicitSource, implicit_reward
from assay.rewards.opening import open_reward
from assay.settings import InputError
from assay.stages.common import hash_of_rewards
from tiny import (
    CONTEXT,
    CONVERSATIONS,
    PROMPTS,
    demonstrations,
    pairs,
    prompts,
    random_network,
    save,
    tiny_model,
    tokenizer,
    write,
)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A policy beside the reference `tiny_model`, in a run directory's place, with the run's notes."""
    run = tmp_path_factory.mktemp("run")
    folder = save(random_network(LlamaForCausalLM, seed=5), run / "policy")
    (run / "provenance.json").write_text(json.dumps({"policy": {"base": tiny_model()}}))
    return folder


def differences(rewards):
    """[C, O, O] of every two responses to each prompt."""
    return rewards[:, :, None] - rewards[:, None]


def test_the_optimal_policy_gives_back_its_reward():
    """pi ~ pi_ref exp(r / beta): implicit reward minus r is one number a prompt, so pairs are ordered without error."""
    beta, world = 0.5, World.random(contexts=3, vocabulary=3, horizon=3, seed=2)
    policy, reference = (TabularModel(world, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        policy.logits.copy_(world.token_policy(world.optimum(beta)))
    contexts = torch.arange(3).repeat_interleave(world.num_responses)
    batch = batch_of(world, contexts, torch.arange(world.num_responses).repeat(3))
    found = implicit_reward(Learner(policy), Learner(reference), batch, beta).view(3, -1)
    gap = found - world.oracle
    assert (gap - gap[:, :1]).abs().max() < 1e-10
    assert torch.allclose(-gap[:, 0], beta * world.log_normaliser(beta), atol=1e-10)  # eq. 5 to the last term
    right = torch.sign(differences(found)) == torch.sign(differences(world.oracle))
    off_diagonal = ~torch.eye(world.num_responses, dtype=torch.bool)
    assert right[:, off_diagonal].double().mean() == 1.0


def logprob(folder, messages, prompt) -> float:
    """Sum over the answer's tokens, its end of sequence included, by plain transformers."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = tokenizer()
    if messages[0]["role"] == "text":
        ids = words("".join(m["content"] for m in messages))["input_ids"] + [words.eos_token_id]
        start = max(1, len(words("".join(m["content"] for m in prompt))["input_ids"]))
    else:
        ids = words.apply_chat_template(messages, return_dict=True)["input_ids"]
        start = len(words.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
        ids = ids[: len(ids) - ids[::-1].index(words.eos_token_id)]
    with torch.no_grad():
        logprobs = network(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return float(sum(logprobs[t - 1, ids[t]] for t in range(start, len(ids))))


def test_it_is_the_difference_of_log_probabilities(other):
    single = [c for c in CONVERSATIONS if len(c[1]) == 1]
    found = ImplicitReward.from_pretrained(
        f"implicit:0.3*{other}:{tiny_model()}", dtype="float32", token_budget=64
    ).score(single)
    for (prompt, response), value in zip(single, found, strict=True):
        asked = [m.to_json() for m in prompt.messages]
        whole = [*asked, *(m.to_json() for m in response)]
        by_hand = 0.3 * (logprob(other, whole, asked) - logprob(tiny_model(), whole, asked))
        assert value == pytest.approx(by_hand, abs=1e-4)
    assert max(found) - min(found) > 0.1


def test_a_policy_that_learnt_nothing_values_nothing():
    same = ImplicitReward.from_pretrained(f"implicit:{tiny_model()}:{tiny_model()}", dtype="float32")
    assert same.score(CONVERSATIONS) == [0.0] * len(CONVERSATIONS)
    assert same.context == CONTEXT and same.uncertainty(CONVERSATIONS) is None


def test_the_reference_is_what_the_run_started_from(other, tmp_path):
    assert ImplicitSource.parse(f"implicit:{other}") == ImplicitSource(other, tiny_model(), 0.1)
    assert ImplicitSource.parse("implicit:2*a:b") == ImplicitSource("a", "b", 2.0)
    with pytest.raises(InputError, match="name its reference"):
        ImplicitSource.parse(f"implicit:{tmp_path}")


@pytest.mark.parametrize("spec", ["implicit:", "implicit::b", "implicit:0*a:b", "implicit:nan*a:b", "implicit:x*a:b"])
def test_specs_that_say_nothing(spec):
    with pytest.raises(InputError, match=r"write implicit:beta\*POLICY:REFERENCE"):
        ImplicitSource.parse(spec)


def test_a_reference_of_other_words_is_refused(tmp_path):
    folder = tmp_path / "reference"
    shutil.copytree(tiny_model(), folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"eos_token": "<|im_start|>"}))
    with pytest.raises(InputError, match="the eos of their tokenizers differ"):
        ImplicitReward.from_pretrained(f"implicit:{tiny_model()}:{folder}")


def test_what_it_is_made_of_changes_with_each_part(other):
    specs = [other, f"0.2*{other}", f"{other}:{other}", f"{tiny_model()}:{other}"]
    assert len({hash_of_rewards(f"implicit:{spec}", AuditConfig()) for spec in specs}) == 4
    assert isinstance(open_reward(f"implicit:{other}"), ImplicitReward)


def assay(*words):
    return main([*map(str, words), "--dtype", "float32"])


def test_the_stages_take_it_as_a_reward(other, tmp_path, capsys):
    """Scored, audited in a run and optimised against: the audit speaks of this policy, reference and scale."""
    run, spec = tmp_path / "run", f"implicit:{other}"
    answers, held_out = write(tmp_path / "a.jsonl", demonstrations(3)), write(tmp_path / "b.jsonl", pairs(12))
    asked = write(tmp_path / "c.jsonl", prompts(4))
    assert assay("score", "--reward", spec, "--data.path", answers, "--out", tmp_path / "out") == OK
    assert len((tmp_path / "out").read_text().splitlines()) == 3
    assay("audit", "--run", run, "--reward", spec, "--data.path", held_out)
    told = json.loads((run / "audit.json").read_text()) | {"passed": True, "reasons": []}
    (run / "audit.json").write_text(json.dumps(told))
    policy = ["--run", run, "--model", tiny_model(), "--data.path", asked, "--steps", 1, "--batch_size", 2]
    policy += ["--num_answers", 2, "--sampling.max_tokens", 4, "--checkpoints.every", 0]
    assert assay("policy", *policy, "--reward", f"implicit:0.5*{other}") == WRONG_INPUT
    assert "speaks of another reward" in capsys.readouterr().err
    assert assay("policy", *policy, "--reward", spec) == OK
    judged = ["--prompts.path", asked, "--base", tiny_model(), "--sampling.max_tokens", 4]
    assert assay("evaluate", "--run", run, *judged, "--reward", spec) == OK


def test_a_conversation_too_long_for_either_is_refused(other):
    with pytest.raises(InputError, match="context 256"):
        ImplicitReward.from_pretrained(f"implicit:{other}").score([(PROMPTS[0], (CONVERSATIONS[0][1][0],) * 80)])
