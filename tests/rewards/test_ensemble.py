"""Several reward models behind the one interface: rules, uncertainty, and members that do not fit together."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForSequenceClassification

from assay.cli import OK, REFUSED, WRONG_INPUT, main
from assay.report.run import read_json
from assay.rewards.ensemble import Ensemble
from assay.rewards.model import RewardModel
from assay.rewards.opening import open_reward
from assay.rewards.readout import Readout
from assay.settings import InputError
from tiny import CONVERSATIONS, pairs, prompts, random_network, save, tiny_model, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three models that differ in every weight."""
    place = tmp_path_factory.mktemp("members")
    return [save(random_network(LlamaForSequenceClassification, seed=seed), place / f"m{seed}") for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def each(folders):
    """[B, 3] what every member says alone."""
    return torch.cat([RewardModel.from_pretrained(f, dtype="float32").outputs(CONVERSATIONS) for f in folders], -1)


RULES = {
    "": lambda r: r.mean(-1),
    "mean": lambda r: r.mean(-1),
    "min": lambda r: r.min(-1).values,
    "cautious": lambda r: r.mean(-1) - 0.5 * r.var(-1),
    "soft": lambda r: -2 * torch.log(torch.exp(-0.5 * r).mean(-1)),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_computed_from_what_members_say(folders, each, rule):
    reward = open_reward(",".join(folders), rule=rule, penalty=0.5, dtype="float32")
    assert reward.score(CONVERSATIONS) == pytest.approx(RULES[rule](each).tolist(), abs=1e-5)
    assert reward.uncertainty(CONVERSATIONS) == pytest.approx(each.std(-1).tolist(), abs=1e-5)
    assert reward.context == 256 and reward.name == ",".join(folders)


def with_heads(folder: Path, seed: int = 5) -> str:
    """A model with three heads."""
    network = random_network(LlamaForSequenceClassification, seed=seed)
    network.score = torch.nn.Linear(32, 3, bias=False)
    network.config.num_labels = 3
    save(network, folder)
    (folder / "assay.json").write_text(json.dumps({"readout": {"kind": "ensemble"}}))
    return str(folder)


@pytest.mark.parametrize("rule", RULES)
def test_heads_of_one_model_take_the_same_rules(tmp_path, rule):
    reward = open_reward(with_heads(tmp_path / "heads"), rule=rule, penalty=0.5, dtype="float32")
    opinions = reward.outputs(CONVERSATIONS)
    assert opinions.shape[1] == 3
    assert reward.score(CONVERSATIONS) == pytest.approx(RULES[rule](opinions).tolist(), abs=1e-5)


def test_a_member_with_heads_has_one_opinion(tmp_path, folders):
    heads = with_heads(tmp_path / "heads")
    both = open_reward(f"{folders[0]}, {heads}", dtype="float32")
    alone = [RewardModel.from_pretrained(name, dtype="float32").score(CONVERSATIONS) for name in (folders[0], heads)]
    assert torch.allclose(both.outputs(CONVERSATIONS), torch.tensor(alone).T, atol=1e-5)


def test_weights_are_those_of_a_models_attributes(tmp_path, folders):
    folder = Path(with_heads(tmp_path / "heads"))
    told = {"kind": "attributes", "names": ["kind", "true", "short"]}
    (folder / "assay.json").write_text(json.dumps({"readout": told}))
    reward = open_reward(str(folder), weights=(0.5, 0.0, 2.0), dtype="float32")
    opinions = reward.outputs(CONVERSATIONS)
    assert reward.score(CONVERSATIONS) == pytest.approx((0.5 * opinions[:, 0] + 2 * opinions[:, 2]).tolist(), abs=1e-5)
    with pytest.raises(InputError, match="has one reward and no objectives to weigh"):
        open_reward(folders[0], weights=(1.0,))


def test_members_that_read_other_text_are_refused_by_name(tmp_path, folders):
    other = tmp_path / "other"
    shutil.copytree(folders[1], other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "curt"))
    with pytest.raises(InputError, match=rf"{folders[0]} and {other} do not read the same text: the template"):
        open_reward(f"{folders[0]},{other}")


def another_end(folder: Path) -> None:
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"eos_token": "<|im_start|>"}))


def more_words(folder: Path) -> None:
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["quick brown"])
    words.save_pretrained(folder)


def swapped_words(folder: Path) -> None:
    """As many words; two that no short text is likely to use have changed places."""
    told = json.loads((folder / "tokenizer.json").read_text())
    words = told["model"]["vocab"]
    one, other = list(words)[-2:]
    words[one], words[other] = words[other], words[one]
    (folder / "tokenizer.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("change", "told"),
    [(another_end, "the eos of"), (more_words, "the tokens, vocabulary, words of"), (swapped_words, "the words of")],
)
def test_members_with_other_tokenizers_are_refused_in_one_line(tmp_path, folders, refused, change, told):
    other = tmp_path / "other"
    shutil.copytree(folders[1], other)
    change(other)
    answers = write(tmp_path / "answers.jsonl", [{"prompt": "Name a colour.", "completion": "Blue."}])
    said = refused("score", "--reward", f"{folders[0]},{other}", "--data.path", answers)
    assert f"{folders[0]} and {other} do not read the same text: {told} their tokenizers differ" in said


def test_what_cannot_be_an_ensemble_is_refused(tmp_path, folders):
    one = folders[0]
    with pytest.raises(InputError, match="has one opinion; name several models"):
        open_reward(one, rule="min")
    with pytest.raises(InputError, match="a name between commas is empty"):
        open_reward(f"{one},,{folders[1]}")
    with pytest.raises(InputError, match="is named twice"):
        open_reward(f"{one},{one}")
    assert open_reward(one, rule="mean", dtype="float32").readout == Readout()
    shutil.copytree(one, tmp_path / "a,b")  # a comma in a folder's own name
    assert open_reward(str(tmp_path / "a,b"), dtype="float32").score(CONVERSATIONS[:1])


def test_one_member_has_no_spread_and_is_refused(folders):
    with pytest.raises(InputError, match="an ensemble needs at least two members; got 1"):
        Ensemble([RewardModel.from_pretrained(folders[0])], Readout(kind="ensemble"))


def test_scores_come_with_their_uncertainty(tmp_path, folders, each):
    rows = [{"prompt": "Name a colour.", "completion": word} for word in ("Blue.", "Red, I think.")]
    out = tmp_path / "out.jsonl"
    words = ["--data.path", write(tmp_path / "answers.jsonl", rows), "--out", str(out), "--dtype", "float32"]
    assert main(["score", "--reward", ",".join(folders), "--reward_rule", "min", *words]) == OK
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [set(line) for line in told] == [{"id", "reward", "uncertainty"}] * 2
    assert main(["score", "--reward", folders[0], *words]) == OK
    assert set(json.loads(out.read_text().splitlines()[0])) == {"id", "reward"}


def test_a_policy_trains_against_a_cautious_ensemble_by_settings_alone(tmp_path, capsys, folders):
    run, spec = tmp_path / "run", ",".join(folders)
    rule = ["--reward", spec, "--reward_rule", "cautious", "--reward_penalty", "0.3", "--dtype", "float32"]
    data = write(tmp_path / "pairs.jsonl", pairs(8))
    assert main(["audit", "--run", str(run), *rule, "--data.path", data]) in (OK, REFUSED)
    findings = {f["probe"] for f in read_json(run / "audit.json")["findings"]}
    assert {"abstention/area", "abstention/surer_half"} <= findings
    (run / "audit.json").write_text(json.dumps({**read_json(run / "audit.json"), "passed": True, "reasons": []}))
    asked = write(tmp_path / "prompts.jsonl", prompts(4))
    common = ["policy", "--run", str(run), "--model", tiny_model(), "--data.path", asked, "--steps", "1"]
    common += ["--batch_size", "2", "--num_answers", "2", "--sampling.max_tokens", "4"]
    assert main([*common, *rule[:3], "min", *rule[4:]]) == WRONG_INPUT  # audited as another rule
    assert "or read by another rule" in capsys.readouterr().err
    assert main([*common, *rule]) == OK
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["rewards/model_uncertainty/mean"] > 0


def test_a_rule_without_a_reward_model_is_refused(tmp_path, capsys):
    rows = write(tmp_path / "pairs.jsonl", pairs(4))
    common = ["policy", "--run", str(tmp_path / "run"), "--model", tiny_model(), "--data.path", rows]
    assert main([*common, "--algorithm", "dpo", "--reward_rule", "min"]) == WRONG_INPUT
    assert "--reward_rule: dpo learns from comparisons" in capsys.readouterr().err
