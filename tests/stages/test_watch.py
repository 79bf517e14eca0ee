"""What is looked at while a policy trains: the truth, what is optimised on the same answers, and the same draws."""

import statistics

import pytest
import torch

from assay.algorithms.rloo import RLOO
from assay.cli import OK, main
from assay.config import PolicyConfig
from assay.engine.sample import sample
from assay.engine.samples import SamplingSettings
from assay.records import Prompt, user_prompt
from assay.report.run import RunDirectory
from assay.rewards.rules import combine
from assay.stages.common import load_oracle
from assay.stages.online import Rollouts, Watch
from assay.stages.rewarding import Rewards
from assay.stages.sampling import PolicySampler
from tiny import PROMPTS, prompts, tiny_model, write

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
