"""What is looked at while a policy trains: the truth, what is optimised on the same answers, and the same draws."""

import json
import shutil
import statistics

import pytest
import torch

from assay.algorithms.rloo import RLOO
from assay.cli import INTERRUPTED, OK, WRONG_INPUT, main
from assay.config import PolicyConfig
from assay.engine.sample import sample
from assay.engine.samples import SamplingSettings
from assay.records import Prompt, user_prompt
from assay.report.run import RunDirectory, read_json
from assay.rewards.apart import FaultSettings
from assay.rewards.rules import combine
from assay.settings import InputError
from assay.stages.common import load_oracle
from assay.stages.online import Rollouts, Watch
from assay.stages.rewarding import Rewards
from assay.stages.sampling import PolicySampler
from assay.train.loop import Training
from tiny import PROMPTS, prompts, tiny_model, tiny_reward, write

RULES = '''
def length(prompts, responses, **_):
    return [float(len(r[-1]["content"])) for r in responses]


def right(prompts, responses, answer):
    """Needs a column of the data."""
    return [float(len(a)) for a in answer]
'''


@pytest.fixture(scope="module")
def sampler():
    return PolicySampler.load(tiny_model(), SamplingSettings(max_tokens=6), dtype="float32")


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    return f"{tmp_path}/rules.py"


def shorter(asked, answers):
    return [-float(len(answer[-1].content)) for answer in answers]


def longer(prompts, responses):
    return [float(len(answer[-1]["content"])) for answer in responses]


def test_truth_and_proxy_are_of_the_same_answers(sampler):
    """What is optimised is here the oracle's opposite: the two means are too."""
    config = PolicyConfig(algorithm=RLOO(), num_answers=2, batch_size=2)
    source = Rollouts(sampler, PROMPTS[:4], Rewards(None, 1.0, combine([(1.0, longer)]), {}), config)
    seen = []
    watch = Watch(
        sampler, PROMPTS[:4], lambda p, r: seen.extend(shorter(p, r)) or seen[-4:], seed=1, worth=source.worth
    )
    told = watch.look()
    assert told == {
        "oracle": statistics.fmean(seen),
        "oracle_error": statistics.stdev(seen) / 2,
        "proxy": -told["oracle"],
    }
    assert watch.scores == seen[-4:]
    assert watch.look() == told
    assert set(Watch(sampler, PROMPTS[:1], shorter, seed=1).look()) == {"oracle", "oracle_error"}


def test_what_is_watched_may_lack_what_the_reward_needs(sampler, rules, capsys):
    """The truth is looked at all the same."""
    config = PolicyConfig(algorithm=RLOO(), num_answers=2, batch_size=2)
    source = Rollouts(sampler, PROMPTS[:4], Rewards(None, 1.0, combine([(1.0, f"{rules}:right")]), {}), config)
    told = Watch(sampler, PROMPTS[:4], shorter, seed=1, worth=source.worth).look()
    assert set(told) == {"oracle", "oracle_error"}
    assert "without the optimised reward: reward function 'right' needs 'answer'" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [(), tuple(range(40))], ids=["to the last token", "at once"])
def test_further_draws_do_not_hang_on_when_answers_end(sampler, stop):
    """The generator has moved on as far, whether answers ended at once or never."""
    generator = torch.Generator().manual_seed(0)
    drawn = sample(sampler.model, [[5, 6], [7]], 2, SamplingSettings(max_tokens=5), stop=stop, generator=generator)
    assert drawn.ids.shape[1] == (5 if not stop else drawn.ids.shape[1])
    expected = torch.Generator().manual_seed(0)
    torch.rand(5, 4, generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


def test_an_oracle_reads_the_datas_columns(rules):
    asked: list[Prompt] = [user_prompt("1 + 1?", meta={"answer": "2"}), user_prompt("5 * 5?", meta={"answer": "25"})]
    assert load_oracle(f"{rules}:right")(asked, [asked[0].messages] * 2) == [1.0, 2.0]


def test_the_base_is_looked_at_once_before_the_first_step(rules, tmp_path):
    """Also where the run begins again before it has a checkpoint."""
    words = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--rules", f"{rules}:length"]
    words += ["--data.path", write(tmp_path / "p.jsonl", prompts(8)), "--steps", 3, "--batch_size", 2]
    words += ["--num_answers", 2, "--sampling.max_tokens", 4, "--dtype", "float32", "--checkpoints.every", 0]
    words += ["--oracle", "text", "--watch.path", tmp_path / "p.jsonl", "--watch_every", 2]
    place = RunDirectory(tmp_path / "run")
    place.append_metrics(0, {"oracle": 7.0}, stage="policy")  # of a run that was killed
    assert main([str(word) for word in words]) == OK
    rows = place.read_metrics("policy")
    assert [(row["step"], "oracle" in row, "proxy" in row) for row in rows] == [
        (0, True, True), (1, False, False), (2, True, True), (3, True, True),
    ]  # fmt: skip
    assert rows[0]["oracle"] != 7.0


FAULTY = '''
import time

asked = 0


def later(prompts, responses, **_):
    """Has nothing to say of the second look."""
    global asked
    asked += 1
    if asked == 2:
        raise OSError("the judge's quota is used up")
    return [1.0] * len(prompts)


def hangs(prompts, responses, **_):
    time.sleep(60)
'''


@pytest.fixture
def faulty(tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY)
    return f"{tmp_path}/faulty.py"


def test_an_oracle_that_fails_ends_the_run_or_leaves_a_look_out(sampler, faulty, capsys):
    watch = Watch(sampler, PROMPTS[:2], load_oracle(f"{faulty}:later"), seed=1, then="mask")
    assert [bool(watch.look()) for _ in range(3)] == [True, False, True]
    assert "no look this time: reward function 'later' failed" in capsys.readouterr().out
    watch = Watch(sampler, PROMPTS[:2], load_oracle(f"{faulty}:later"), seed=1)
    watch.look()
    with pytest.raises(InputError, match=r"^--oracle: reward function 'later' failed .*--faults.then mask"):
        watch.look()


def test_an_oracle_that_failed_once_may_be_asked_again(sampler, faulty):
    watch = Watch(sampler, PROMPTS[:2], load_oracle(f"{faulty}:later", FaultSettings(retries=1)), seed=1)
    assert all(watch.look() for _ in range(3))


def test_an_oracle_that_hangs_is_killed(sampler, faulty):
    oracle = load_oracle(f"{faulty}:hangs", FaultSettings(timeout=0.5))
    with pytest.raises(InputError, match=r"hangs: no answer within 0\.5 s"):
        Watch(sampler, PROMPTS[:2], oracle, seed=1).look()


def command(tmp_path, *words):
    told = ["policy", "--run", tmp_path / "run", "--model", tiny_model(), "--steps", 6, "--batch_size", 2]
    told += ["--data.path", write(tmp_path / "p.jsonl", prompts(8)), "--num_answers", 2, "--dtype", "float32"]
    told += ["--watch.path", tmp_path / "p.jsonl", "--watch_every", 1]
    return [str(word) for word in (*told, "--sampling.max_tokens", 4, *words)]


def test_watched_prompts_that_the_oracle_cannot_read_are_told_before_training(tmp_path, rules, refused):
    """100 words fit the policy's context of 256 and not the oracle's, which is cut to 64."""
    folder = tmp_path / "reward"
    shutil.copytree(tiny_reward(), folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 64}))
    rows = prompts(2)
    rows[1]["prompt"][-1]["content"] = "word " * 100
    words = ["--rules", f"{rules}:length", "--oracle", f"reward:{folder}"]
    watched = write(tmp_path / "watched.jsonl", rows)
    said = refused(*command(tmp_path, *words, "--watch.path", watched))
    assert "watched.jsonl: 1 of 2 records are longer than" in said and "--watch.too_long skip" in said


def test_an_oracle_that_fails_at_the_end_does_not_cost_the_run(tmp_path, rules):
    """It is asked again when the run goes on, and of the same policy."""
    oracle = "def down(prompts, responses, **_):\n"
    oracle += f"    if len(open({str(tmp_path / 'run/metrics.jsonl')!r}).readlines()) == FAILS:\n"
    oracle += "        raise OSError('no route')\n    return [float(len(r[-1]['content'])) for r in responses]\n"
    words = ["--rules", f"{rules}:length", "--checkpoints.every", 50, "--oracle", f"{tmp_path}/oracle.py:down"]
    found = []
    for fails, code in [(6, WRONG_INPUT), (99, OK)]:  # lines before the look of step 6
        (tmp_path / "oracle.py").write_text(f"FAILS = {fails}\n{oracle}")
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "metrics.jsonl").touch()
        assert main(command(tmp_path, *words)) == code
        found.append(RunDirectory(tmp_path / "run").read_metrics("policy"))
    assert [row["step"] for row in found[0]] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in found[1]] == [0, 1, 2, 3, 4, 5, 6] and "oracle" in found[1][-1]
    assert found[1][:6] == found[0] and (tmp_path / "run" / "policy" / "model.safetensors").exists()


def test_with_another_oracle_a_run_goes_on_and_counts_anew(tmp_path, rules, monkeypatch):
    """The first gives 1000 throughout; beside it the second's looks would be a fall."""
    (tmp_path / "other.py").write_text("def other(prompts, responses, **_):\n    return [1000.0] * len(prompts)\n")
    words = ["--rules", f"{rules}:length", "--stop.oracle_drop", "0.1", "--stop.patience", 1]
    words += ["--checkpoints.every", 2, "--optimiser.lr", "0"]
    real = Training.one_step

    def one_step(self):
        if self.step == 4:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "one_step", one_step)
        assert main(command(tmp_path, *words, "--oracle", f"{tmp_path}/other.py:other")) == INTERRUPTED
    assert main(command(tmp_path, *words, "--oracle", "length")) == OK
    place = RunDirectory(tmp_path / "run")
    rows = place.read_metrics("policy")
    assert [row["oracle"] == 1000 for row in rows] == [True] * 5 + [False] * 2
    assert "stopped" not in read_json(place.provenance)["policy"]
