"""Several adapters of one body as an ensemble: they do not touch each other, and plain PEFT loads every one."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from assay.cli import OK, WRONG_INPUT, main
from assay.engine.catalog import ModelSource
from assay.engine.learner import OneAdapter
from assay.engine.load import LoRASettings, adapter_names, load_reward
from assay.engine.optimizer import FlatAdamW
from assay.records import reply, user_prompt
from assay.rewards.contract import plain_outputs
from assay.rewards.likelihoods.comparisons import BradleyTerry
from assay.rewards.model import RewardModel
from assay.rewards.opening import open_reward
from assay.settings import InputError
from assay.tokens.chat import Encoder, collate
from tiny import CONVERSATIONS, pairs, ratings, tiny_model, tokenizer, write

LORA = ("--adapters", "3", "--lora.rank", "2")


def train(place, *words, rows=None):
    data = write(place / "feedback.jsonl", rows or pairs(12))
    common = ["--run", str(place / "run"), "--model", tiny_model(), "--data.path", data, "--held_out", "3"]
    return main(["reward", *common, "--optimiser.lr", "0.01", "--batch_size", "3", "--dtype", "float32", *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three adapters."""
    place = tmp_path_factory.mktemp("adapters")
    assert train(place, *LORA, "--epochs", "2") == OK
    return place / "run"


@pytest.fixture
def batch():
    """Two pairs."""
    encoder = Encoder(tokenizer())
    prompt = user_prompt("Name a colour.")
    texts = ("Blue.", "I would rather not.", "Green, I say.", "No")
    return collate([[encoder.conversation(prompt, reply(text)) for text in texts]], tokenizer().pad_token_id)


def test_training_one_adapter_leaves_the_others_as_they_are(batch):
    torch.manual_seed(0)
    source = ModelSource(tiny_model(), tiny_model(), "test")
    model = load_reward(source, dtype="float32", lora=LoRASettings(rank=2), fresh_head=True, num_adapters=3)
    learners = []
    for name in adapter_names(3):
        model.use(name)
        learners.append(OneAdapter(model, name, FlatAdamW(model.named_parameters(), lr=0.1)))
    terms = BradleyTerry().losses()

    def outputs():
        return [learner.forward(batch, ("outputs",)).outputs for learner in learners]

    before, frozen = outputs(), {n: p.clone() for n, p in model.named_parameters() if "lora" not in n}
    for index, learner in enumerate(learners):
        for _ in range(2):  # the first step moves only the half of an adapter that starts at zero
            learner.forward_backward({"main": batch}, terms)
            assert learner.step(lr=0.1, max_norm=None) > 0
        after = outputs()
        for other in range(3):
            assert torch.equal(before[other], after[other]) == (other != index)
        before = after
    moved = {n for n, p in model.named_parameters() if n in frozen and not torch.equal(p, frozen[n])}
    assert moved == {f"heads.reward_{name}.weight" for name in adapter_names(3)}


def test_plain_peft_gives_every_members_rewards(trained):
    reward = open_reward(str(trained / "reward"), dtype="float32")
    ours = reward.outputs(CONVERSATIONS)
    theirs = plain_outputs(trained / "reward", CONVERSATIONS, batch_size=2, padding_side="left")
    assert ours.shape == (len(CONVERSATIONS), 3)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert len({round(float(x), 4) for x in ours[0]}) == 3  # bootstraps, heads and adapters of their own
    assert reward.score(CONVERSATIONS) == pytest.approx(ours.mean(-1).tolist(), abs=1e-6)
    assert min(reward.uncertainty(CONVERSATIONS)) > 0
    cautious = open_reward(str(trained / "reward"), rule="cautious", penalty=0.5, dtype="float32")
    assert cautious.score(CONVERSATIONS) == pytest.approx((ours.mean(-1) - 0.5 * ours.var(-1)).tolist(), abs=1e-5)


def test_one_member_is_what_one_adapter_on_its_bootstrap_is(trained, tmp_path):
    """Its own adapter alone, merged into the weights, is an ordinary model that gives the member's rewards."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(tiny_model(), num_labels=1)
    merged = PeftModel.from_pretrained(base, str(trained / "reward" / "member1")).merge_and_unload()
    merged.config.pad_token_id = tokenizer().pad_token_id
    merged.save_pretrained(tmp_path / "member")
    tokenizer().save_pretrained(tmp_path / "member")
    alone = RewardModel.from_pretrained(str(tmp_path / "member"), dtype="float32").score(CONVERSATIONS)
    ours = open_reward(str(trained / "reward"), dtype="float32").outputs(CONVERSATIONS)
    # beside float64, rounding in fp32 is up to 2e-5 here, by the processor; another member is further off by far
    assert alone == pytest.approx(ours[:, 1].tolist(), abs=1e-4)
    assert all((torch.tensor(alone) - ours[:, other]).abs().max() > 1e-2 for other in (0, 2))


def test_verbs_take_it_like_any_reward(trained, tmp_path, capsys):
    rows = [{"prompt": "Name a colour.", "completion": word} for word in ("Blue.", "Red, I think.")]
    words = ["--data.path", write(tmp_path / "answers.jsonl", rows), "--out", str(tmp_path / "out.jsonl")]
    assert main(["score", "--reward", str(trained / "reward"), *words]) == OK
    assert "uncertainty" in json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert main(["verify", "--reward", str(trained / "reward")]) == OK
    main(["audit", "--run", str(trained), "--data.path", write(tmp_path / "pairs.jsonl", pairs(8))])
    assert "abstention" in (trained / "audit.json").read_text()
    capsys.readouterr()


def test_a_second_run_trains_nothing_again(trained, capsys):
    before = {path: path.read_bytes() for path in sorted((trained / "reward").rglob("*.safetensors"))}
    assert len(before) == 3
    assert train(trained.parent, *LORA, "--epochs", "2") == OK
    assert capsys.readouterr().out.count("resumed after step 6 of 6") >= 1
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_that_is_not_whole_or_whose_base_changed_is_refused(trained, tmp_path):
    folder = tmp_path / "reward"
    shutil.copytree(trained / "reward", folder)
    (folder / "member1" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"member1/adapter_model\.safetensors is missing: the ensemble is not whole"):
        open_reward(str(folder))
    shutil.copy(trained / "reward" / "member0" / "adapter_model.safetensors", folder / "member1")
    facts = json.loads((folder / "assay.json").read_text())
    Path(folder / "assay.json").write_text(json.dumps({**facts, "base_weights": "0" * 16}))
    with pytest.raises(InputError, match="is not the one that it was trained on any more"):
        open_reward(str(folder))


@pytest.mark.parametrize(
    ("words", "rows", "said"),
    [
        (["--adapters", "3"], None, "--adapters needs --lora.rank"),
        ([*LORA, "--heads", "2"], None, "--adapters with --heads"),
        ([*LORA, "--ids.beta", "0.5"], None, "--adapters with --ids.beta"),
        ([*LORA, "--likelihood", "rao_kupper"], None, "--adapters with rao_kupper: it learns log_threshold"),
        ([*LORA, "--likelihood", "outcome"], ratings((0, 1)), "no heads or objectives fit it"),
    ],
)
def test_what_does_not_go_with_adapters_is_refused(tmp_path, capsys, words, rows, said):
    assert train(tmp_path, *words, rows=rows) == WRONG_INPUT
    assert said in capsys.readouterr().err


def test_ratings_train_adapters_too(tmp_path):
    assert train(tmp_path, *LORA, "--likelihood", "regression", rows=ratings((1, 3, 5, 2, 4))) == OK
    assert open_reward(str(tmp_path / "run" / "reward")).outputs(CONVERSATIONS).shape[1] == 3


def test_a_bootstrap_that_draws_nothing_is_told(tmp_path, capsys):
    """One pair comes 0 times for about a third of the adapters."""
    assert train(tmp_path, "--adapters", "8", "--lora.rank", "2", "--held_out", "0", rows=pairs(1)) == WRONG_INPUT
    assert "drew none of 1 judgements for itself: give more" in capsys.readouterr().err
