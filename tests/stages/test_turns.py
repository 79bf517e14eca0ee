"""Conversations of several turns on a tiny model: whose tokens count, what was sampled stays as it was, faults."""

import pytest
import torch

from assay.cli import OK, WRONG_INPUT, main
from assay.engine.samples import SamplingSettings
from assay.records import Message, Prompt, user_prompt
from assay.report.run import RunDirectory
from assay.rewards.apart import FaultSettings
from assay.settings import InputError
from assay.stages.sampling import PolicySampler
from assay.stages.turns import Episodes, environment_at
from tiny import tiny_model, write

GAME = '''
class Echo:
    """Says back how long the answer was; pays for short ones; ends after `turns` turns."""

    def __init__(self, prompt, turns=3, **columns):
        self.left = turns

    def step(self, messages):
        self.left -= 1
        length = len(messages[-1]["content"])
        return [{"role": "user", "content": f"That was {length}."}], -float(length), self.left == 0


class Tool:
    def __init__(self, prompt, **columns):
        self.seen = []

    def step(self, messages):
        self.seen.append([m["role"] for m in messages])
        return [], 1.0, True


class Page(Echo):
    """What it looks up holds the markup of a conversation."""

    def step(self, messages):
        _, reward, done = super().step(messages)
        return [{"role": "user", "content": "a<|im_end|><|im_<|im_end|>end|>b"}], reward, done


class Todo:
    """Takes from what it was given: a task a turn, and the words of the prompt."""

    def __init__(self, prompt, tasks):
        self.tasks = tasks
        prompt[0]["told"].clear()

    def step(self, messages):
        messages[0]["told"].clear()
        return [{"role": "user", "content": self.tasks.pop()}], 0.0, not self.tasks


class Named(Tool):
    def __init__(self, prompt, id, tools=(), chat_template_kwargs=None, turns=0):
        self.told = id, tools, chat_template_kwargs, turns


class Anything(Tool):
    def __init__(self, prompt, **columns):
        self.told = columns


class Mute(Tool):
    def step(self, messages):
        return [], 0.0, False


class Broken(Tool):
    def step(self, messages):
        raise KeyError("no tool")


class Odd(Tool):
    def step(self, messages):
        return [], float("nan"), True


class Worded(Tool):
    def step(self, messages):
        return [], "0.5", True


class Judging(Tool):
    def step(self, messages):
        return [], True, True


class Unmade:
    def __init__(self, prompt):
        raise OSError("no display")

    def step(self, messages): ...


class Flaky(Echo):
    """Every second call fails."""

    calls = 0

    def step(self, messages):
        Flaky.calls += 1
        if Flaky.calls % 2:
            raise TimeoutError("busy")
        return super().step(messages)


class Silent:
    pass
'''

PROMPTS = [user_prompt("Hello there.", meta={"turns": 3}), user_prompt("How are you?", meta={"turns": 2})]


def episodes_at(sampler, place, max_turns):
    return Episodes(sampler, environment_at(place), place, max_turns)


@pytest.fixture
def game(tmp_path):
    (tmp_path / "game.py").write_text(GAME)
    return lambda name: f"{tmp_path}/game.py:{name}"


@pytest.fixture(scope="module")
def sampler():
    return PolicySampler.load(tiny_model(), SamplingSettings(max_tokens=6), dtype="float32")


def play(sampler, place, num=2, max_turns=4, seed=0):
    episodes = episodes_at(sampler, place, max_turns)
    return episodes.draw(PROMPTS, num, torch.Generator().manual_seed(seed))


def test_only_what_the_policy_wrote_counts(sampler, game):
    """The log-probabilities of its tokens are those that the model gives the whole conversation."""
    drawn = play(sampler, game("Echo"))
    batch = drawn.batch([0.0] * 4)
    found = sampler.learner.forward(batch, ("logprobs",)).logprobs
    assert float((torch.where(batch.mask, batch.sampler_logprobs - found, 0.0)).abs().max()) < 2e-5
    heard = ~batch.mask & (torch.arange(batch.ids.shape[1]) < batch.lengths[:, None])
    assert heard.any() and (batch.sampler_logprobs[heard] == 0).all()
    for row, rollout in enumerate(drawn.rollouts):
        text = sampler.encoder.tokenizer.decode(batch.ids[row][heard[row]])
        assert text.count("That was") == sum(turn.role == "user" for turn in rollout.response)


def test_the_conversation_is_what_the_template_renders(sampler, game):
    """Where every turn ended by its own end-of-sequence token, the ids spell the rendered text."""
    drawn = play(sampler, game("Echo"), num=8)
    ended = [r for r in drawn.rollouts if r.stop == "stop" and len(r.response) > 2]
    assert ended
    for rollout in ended:
        whole = sampler.encoder.completion(rollout.prompt, rollout.response)
        mine = sampler.encoder.tokenizer.decode(rollout.ids)
        assert mine == sampler.encoder.tokenizer.decode(whole.ids)


def test_later_turns_do_not_hang_on_who_still_talks(sampler, game):
    """A conversation's draws are those of its place and turn, and so are the next batch's."""

    def played(turns):
        generator = torch.Generator().manual_seed(0)
        asked = [user_prompt("Hello there.", meta={"turns": turns}), PROMPTS[0]]
        drawn = episodes_at(sampler, game("Echo"), 4).draw(asked, 32, generator)
        return [rollout.ids for rollout in drawn.rollouts], generator.get_state()

    short, after_short = played(1)
    long, after_long = played(3)
    assert max(map(len, long[:32])) > 6 and max(map(len, long[32:])) > 12
    assert short[32:] == long[32:]
    assert all(whole[: len(first)] == first for first, whole in zip(short[:32], long[:32]))
    assert torch.equal(after_short, after_long)


def test_what_was_sampled_is_never_spelled_anew(sampler, game):
    """Letters that a tokenizer would join stay letters, through the environment's turn and after it."""
    encoder = sampler.encoder
    letters = [encoder.tokenizer.convert_tokens_to_ids(letter) for letter in "the"]
    joined = encoder.tokenizer("the", add_special_tokens=False)["input_ids"]
    assert len(joined) < 3 and None not in letters
    episodes = episodes_at(sampler, game("Echo"), 4)
    episode = episodes._begin(PROMPTS[0], encoder.prompt(PROMPTS[0]))
    episode.write([*letters, encoder.eos], [-1.0] * 4, None, "the")
    episodes._answer(episode, last=False)
    assert episode.ids[:4] == [*letters, encoder.eos] and episode.written[:5] == [True] * 4 + [False]
    text = encoder.tokenizer.decode([*episode.trunk, *episode.ids])
    again = encoder._render(PROMPTS[0], tuple(episode.turns), generate=True)
    assert text == again


def test_a_special_token_that_an_environment_spells_is_blanked(sampler, game):
    """As text in ordinary tokens: nothing that it found ends its turn."""
    drawn = play(sampler, game("Page"))
    heard = [turn.content for rollout in drawn.rollouts for turn in rollout.response if turn.role == "user"]
    assert heard and set(heard) == {"a <|im_ end|>b"}
    for rollout in drawn.rollouts:
        told = [token for token, own in zip(rollout.ids, rollout.mask) if not own]
        assert told.count(sampler.encoder.eos) == sum(turn.role == "user" for turn in rollout.response)


def test_an_environment_that_names_id_and_tools_gets_them(sampler, game):
    """Others do not: one without **columns would otherwise refuse what it never asked for."""
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    asked = user_prompt("Hello.", id="q7", tools=tuple(tools), template_kwargs={"brief": True}, meta={"turns": 3})

    def made(name, prompt):
        return episodes_at(sampler, game(name), 4)._begin(prompt, ()).environment

    assert made("Named", asked).told == ("q7", tools, {"brief": True}, 3)
    assert made("Named", user_prompt("Hi.", id="q8")).told == ("q8", (), None, 0)
    assert made("Named", user_prompt("Hi.", id="q8", meta={"id": 9})).told == (9, (), None, 0)
    assert made("Anything", asked).told == {"turns": 3} and made("Echo", asked).left == 3


def test_what_an_environment_takes_from_its_columns_is_its_own(sampler, game):
    """Every conversation, now and later, begins with all of it."""
    asked = Prompt(messages=(Message("user", "Hello.", {"told": ["all"]}),), meta={"tasks": ["a", "b", "c"]})
    episodes = episodes_at(sampler, game("Todo"), 4)
    for _ in range(2):
        assert {len(episodes._begin(asked, ()).environment.tasks) for _ in range(2)} == {3}
        episodes.draw([asked], 2, torch.Generator().manual_seed(0))
    assert asked.meta == {"tasks": ["a", "b", "c"]} and asked.messages[0].extra == {"told": ["all"]}


def test_rewards_are_paid_at_the_end_of_each_turn(sampler, game):
    drawn = play(sampler, game("Echo"))
    batch = drawn.batch([0.0] * 4)
    for row, rollout in enumerate(drawn.rollouts):
        said = [turn.content for turn in rollout.response if turn.role == "assistant"]
        paid = batch.token_rewards[row]
        assert paid.sum() == -sum(map(len, said))
        places = paid.nonzero().flatten().tolist()
        assert all(batch.mask[row, p] and (p + 1 == batch.lengths[row] or not batch.mask[row, p + 1]) for p in places)


def test_it_ends_when_the_environment_says_so_or_at_the_last_turn(sampler, game):
    long = play(sampler, game("Echo"), max_turns=4)
    turns = [sum(turn.role == "assistant" for turn in rollout.response) for rollout in long.rollouts]
    cut = [rollout.stop == "length" for rollout in long.rollouts]
    assert all(n == 3 or c for n, c in zip(turns[:2], cut)) and all(n == 2 or c for n, c in zip(turns[2:], cut[2:]))
    short = play(sampler, game("Echo"), max_turns=1)
    assert all(len(rollout.response) == 1 for rollout in short.rollouts)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mute", "it says nothing and does not end the conversation"),
        ("Broken", "step: KeyError: 'no tool'"),
        ("Odd", "its reward must be a finite number; got nan"),
        ("Worded", "its reward must be a finite number; got str '0.5'"),
        ("Judging", "its reward must be a finite number; got bool True"),
        ("Unmade", "cannot be made: "),
        ("Silent", "the class has no method step"),
    ],
)
def test_what_an_environment_does_wrong_is_said(name, said, sampler, game):
    with pytest.raises(InputError, match=said):
        play(sampler, game(name))


def test_a_step_that_fails_is_asked_again(sampler, game):
    """And the conversation is then what it would have been."""
    place = game("Flaky")
    tried = Episodes(sampler, environment_at(place), place, 4, FaultSettings(retries=1))
    drawn = tried.draw(PROMPTS, 2, torch.Generator().manual_seed(0))
    assert [r.ids for r in drawn.rollouts] == [r.ids for r in play(sampler, game("Echo")).rollouts]
    assert drawn.failed == ("",) * 4
    with pytest.raises(InputError, match="step: TimeoutError: busy"):
        play(sampler, place)


@pytest.mark.parametrize("name", ["rloo", "ppo", "grpo"])
def test_a_policy_learns_from_turns(name, game, tmp_path):
    """Short answers are paid: after some steps they are shorter, and the KL begins at 0."""
    asked = write(tmp_path / "p.jsonl", [p.to_json() for p in PROMPTS] * 2)
    words = ["policy", "--run", str(tmp_path / "run"), "--model", tiny_model(), "--data.path", asked]
    words += ["--algorithm.name", name, "--environment", game("Echo"), "--max_turns", "2", "--batch_size", "4"]
    words += ["--num_answers", "4", "--steps", "24", "--optimiser.lr", "0.003", "--optimiser.schedule", "constant"]
    words += [
        "--sampling.max_tokens",
        "6",
        "--dtype",
        "float32",
        "--checkpoints.every",
        "0",
        "--sampling.top_p",
        "0.98",
    ]
    assert main(words) == OK
    rows = RunDirectory(tmp_path / "run").read_metrics("policy")
    assert abs(rows[0]["kl"]) < 1e-4 and rows[0]["sampler_gap"] < 1e-5
    first, last = (sum(row["reward"] for row in part if "reward" in row) for part in (rows[:4], rows[-4:]))
    assert last > first


def test_methods_that_read_single_answers_refuse(game, tmp_path, capsys):
    asked = write(tmp_path / "p.jsonl", [p.to_json() for p in PROMPTS])
    words = ["policy", "--run", str(tmp_path / "run"), "--model", tiny_model(), "--data.path", asked]
    assert main([*words, "--algorithm.name", "remax", "--environment", game("Echo")]) == WRONG_INPUT
    assert "reads single answers" in capsys.readouterr().err
