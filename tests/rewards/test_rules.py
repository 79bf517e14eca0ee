import asyncio
import os
import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.config import named
from assay.feedback import TextOracle, length_lover
from assay.records import Message, Prompt, Rollout, reply, user_prompt
from assay.rewards.rules import Rule, combine, fill_rewards, from_oracle, load
from assay.settings import InputError


def long_answers(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [len(response) for response in responses]


def right(responses: list[str], answer: list[str]) -> list[float]:
    return [float(response == known) for response, known in zip(responses, answer, strict=True)]


async def later(completions: list[str], **columns: Any) -> list[float]:
    return [1.0 for _ in completions]


def said(rule: Any, *arguments: Any, **columns: Any) -> str:
    with pytest.raises(InputError) as caught:
        rule(*arguments, **columns)
    return str(caught.value)


def test_a_function_gets_what_its_signature_asks_for() -> None:
    assert Rule(long_answers)(["p", "q"], ["abc", ""], other=[1, 2]) == [3.0, 0.0]
    assert Rule(right)(["p"], ["4"], answer=["4"], other=[1]) == [1.0]
    assert Rule(later)(["p"], ["x"]) == [1.0]
    message = said(Rule(right), ["p"], ["4"], answers=["4"])
    assert message == (
        "reward function 'right' needs 'answer', which is neither prompts, responses nor one of the data's columns "
        "(answers). Did you mean 'answers'?"
    )


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (None, "got None"),
        (1.0, "got float 1.0"),
        ("12", "got str '12'"),
        ([1.0], "got 1"),
        ([1.0, 2.0, 3.0], "got 3"),
        ([1.0, None], "got None for response 1"),
        ([1.0, "2"], "got str '2' for response 1"),
        ([True, 1.0], "got bool True for response 0"),
        ([1.0, float("nan")], "got nan for response 1"),
        ([1.0, float("inf")], "got inf for response 1"),
        ([1.0, [2.0]], "got list [2.0] for response 1"),
        (np.ones((2, 1)), "got an array of shape (2, 1)"),
        ({0: 1.0, 1: 2.0}, "got dict"),
        (np.array([True, False]), "got bool True for response 0"),
        ([1.0, -1e20], "got -1e+20 for response 1, whose square is beyond"),
    ],
)
def test_wrong_returns_name_function_expected_and_got(result: Any, got: str) -> None:
    message = said(Rule(lambda prompts, responses: result, "mine"), ["p", "q"], ["a", "b"])
    assert message.startswith("reward function 'mine' must return 2 finite numbers, one per response; got")
    assert got in message


def test_a_function_that_goes_elsewhere_does_not_take_the_run_with_it(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box").mkdir()

    def goes(prompts, responses):
        os.chdir("box")
        return [1.0] * len(responses)

    assert Rule(goes)(["p"], ["a"]) == [1.0] and Path.cwd() == tmp_path


def test_a_task_that_was_cancelled_is_a_failure_like_others() -> None:
    async def cancelled(prompts, responses):
        raise asyncio.CancelledError

    assert "'cancelled' failed on 1 responses: CancelledError" in said(Rule(cancelled), ["p"], ["a"])


def test_tensors_are_refused_with_advice() -> None:
    import torch

    rule = Rule(lambda prompts, responses: torch.ones(2), "mine")
    assert said(rule, ["p", "q"], ["a", "b"]).endswith("got a tensor (2,) (return .tolist())")
    elsewhere = Rule(lambda prompts, responses: torch.ones(2, device="meta"), "mine")
    assert said(elsewhere, ["p", "q"], ["a", "b"]).endswith("got a tensor (2,) (return .tolist())")


def test_real_numbers_of_any_kind_are_rewards() -> None:
    values = (np.float32(0.5), np.int64(2), Fraction(1, 4))
    assert Rule(lambda responses: values)(["p"] * 3, ["a"] * 3) == [0.5, 2.0, 0.25]
    assert Rule(lambda responses: np.array([1, 2]))(["p"] * 2, ["a"] * 2) == [1.0, 2.0]


def test_a_function_that_raises_is_named() -> None:
    def broken(responses: list[str]) -> list[float]:
        return [1 / 0]

    message = said(Rule(broken), ["p"], ["a"])
    assert message == "reward function 'broken' failed on 1 responses: ZeroDivisionError: division by zero"


def test_load(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Bonus:\n    size: float = 2.0\n"
        "def polite(prompts, responses, **columns):\n    return [Bonus().size * ('please' in r) for r in responses]\n"
        "limit = 3\n"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text("def polite(responses):\n    return [7 for _ in responses]\n")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    rule = load(f"{tmp_path}/mine.py:polite")
    assert load(f"{tmp_path}/other/mine.py:polite")(["p"], ["x"]) == [7.0]
    assert rule.name == "polite" and rule(["p", "p"], ["please", "now"]) == [2.0, 0.0]
    assert load("assay.feedback.oracles:length_lover")(["p"], ["one two"]) == [2.0]
    wrong = {
        "mine.py": "write path/to/file.py:name or package.module:name",
        f"{tmp_path}/mine.py": "write path/to/file.py:name",
        f"{tmp_path}/mime.py:polite": "Did you mean 'mine.py'?",
        f"{tmp_path}/mine.py:polit": "has no 'polit'. Did you mean 'polite'?",
        f"{tmp_path}/mine.py:limit": "is no function but int",
        f"{tmp_path}/mine.py:Bonus": "is a class",
        f"{tmp_path}/broken.py:f": "does not run: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        "nothing_of_this_name:f": "importing nothing_of_this_name failed",
    }
    for place, what in wrong.items():
        assert what in said(load, place)


@pytest.mark.parametrize("kind", [load, partial(named, "algorithm", {})], ids=["reward", "algorithm"])
def test_a_file_that_exits_is_no_end_of_the_program(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends_early.py").write_text("import sys\ndef mine(responses):\n    return [0.0]\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert said(kind, f"{tmp_path}/ends_early.py:mine") == f"{tmp_path}/ends_early.py does not run: SystemExit: 0"
    assert said(kind, "ends_early:mine") == "'ends_early:mine': importing ends_early failed: SystemExit: 0"


def test_combined_rewards_are_weighted_sums_that_keep_their_parts() -> None:
    reward = combine([(2.0, long_answers), (-0.5, length_lover), (1, "assay.feedback.oracles:length_lover")])
    assert reward.score_parts(["p", "q"], ["one two", "three"]) == {
        "long_answers": [7.0, 5.0],
        "length_lover": [2.0, 1.0],
        "length_lover#2": [2.0, 1.0],
    }
    assert reward(["p", "q"], ["one two", "three"]) == [2 * 7 - 1 + 2, 2 * 5 - 0.5 + 1]
    nested = combine([(10.0, reward), (1.0, length_lover)])
    assert nested(["p"], ["one two"]) == [10 * 15 + 2]
    for parts in ([], [(float("nan"), long_answers)], [(True, long_answers)], [("1", long_answers)], [(1.0, 3)]):
        with pytest.raises(InputError):
            combine(parts)  # pyright: ignore[reportArgumentType]


def test_id_and_tools_are_columns() -> None:
    """Unless other data are called so; `tools` and `chat_template_kwargs` where a prompt has them."""
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    with_tools = user_prompt("Q", id="q1", tools=tuple(tools), template_kwargs={"brief": True}, meta={"answer": "4"})
    seen: list[Any] = []

    def watch(prompts: list[Any], id: list[Any], tools: Any = "none", **columns: Any) -> list[float]:
        seen.append((id, tools, columns))
        return [1.0 for _ in prompts]

    def filled(*prompts: Prompt) -> Any:
        fill_rewards(Rule(watch), [Rollout(prompt=prompt, response=reply("4"), stop="stop") for prompt in prompts])
        return seen.pop()

    ids, given, columns = filled(with_tools, user_prompt("R", id="q2"))
    assert (ids, given) == (["q1", "q2"], [tools, None])
    assert columns.pop("responses") and columns.pop("chat_template_kwargs") == [{"brief": True}, None]
    assert columns == {"answer": ["4", None]}
    assert filled(user_prompt("Q", id="q1", meta={"id": 7}))[:2] == ([7], "none")


def test_what_a_function_takes_from_its_columns_is_its_own() -> None:
    """Siblings, other functions and later calls find all of it."""

    def takes(prompts: list[Any], responses: list[Any], tests: list[list[str]]) -> list[float]:
        for prompt in prompts:
            prompt[0]["told"].clear()
        return [float(len(cases.pop())) for cases in tests]

    asked = Prompt(messages=(Message("user", "Q", {"told": ["all"]}),), meta={"tests": ["a", "bb", "ccc"]})
    rollouts = [Rollout(prompt=asked, response=reply(word), stop="stop") for word in ("x", "y")]
    reward = combine([(1.0, takes), (1.0, Rule(takes, "again"))])
    for _ in range(2):
        assert [rollout.reward_parts for rollout in fill_rewards(reward, rollouts)] == [{"takes": 3, "again": 3}] * 2
        assert [rollout.reward for rollout in fill_rewards(Rule(takes), rollouts)] == [3, 3]
    assert asked.meta == {"tests": ["a", "bb", "ccc"]} and asked.messages[0].extra == {"told": ["all"]}


@pytest.mark.parametrize("column", ["prompts", "responses", "self"])
def test_a_column_called_as_what_is_judged_is_left_out(column: str) -> None:
    asked = user_prompt("Q", id="q1", meta={column: "mine", "answer": "4"})
    rollout = Rollout(prompt=asked, response=reply("4"), stop="stop")
    seen: list[dict[str, Any]] = []

    def watch(prompts: list[Any], responses: list[Any], **columns: Any) -> list[float]:
        seen.append(columns)
        return [1.0 for _ in responses]

    for reward in (Rule(watch), combine([(1.0, watch)])):
        assert fill_rewards(reward, [rollout])[0].reward == 1.0
    assert seen == [{"id": ["q1"], "answer": ["4"]}] * 2


def test_rollouts_are_filled_with_rewards_and_parts() -> None:
    seen: dict[str, Any] = {}

    def spy(prompts: Any, responses: Any, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, responses=responses)
        return [1.0, 2.0]

    rollouts = [
        Rollout(prompt=user_prompt("Hi", id="q1", meta={"answer": 4}), response=reply("one two"), stop="stop"),
        Rollout(
            prompt=Prompt(messages=(Message("text", "Once"),), id="q2"), response=reply(" upon", plain=True),
            stop="length", reward_parts={"kl": -1.0},
        ),
    ]  # fmt: skip
    assert [rollout.reward for rollout in fill_rewards(Rule(spy), rollouts)] == [1.0, 2.0]
    assert seen == {
        "prompts": [[{"role": "user", "content": "Hi"}], "Once"],
        "responses": [[{"role": "assistant", "content": "one two"}], " upon"],
        "id": ["q1", "q2"],
        "answer": [4, None],
    }
    filled = fill_rewards(combine([(1.0, spy), (0.5, length_lover)]), rollouts)
    assert [rollout.reward for rollout in filled] == [2.0, 2.5]
    assert filled[0].reward_parts == {"spy": 1.0, "length_lover": 2.0}
    assert filled[1].reward_parts == {"kl": -1.0, "spy": 2.0, "length_lover": 1.0}


def test_the_number_of_tokens_is_of_what_the_policy_wrote() -> None:
    """Five tokens of which an environment said three."""
    told: dict[str, Any] = {"prompt": user_prompt("Hi"), "response": reply("x"), "stop": "stop", "ids": (1, 2, 3, 4, 5)}
    seen: list[Any] = []

    def spy(prompts: Any, responses: Any, num_tokens: Any) -> list[float]:
        seen.extend(num_tokens)
        return [0.0] * len(responses)

    fill_rewards(Rule(spy), [Rollout(**told), Rollout(**told, mask=(True, False, False, False, True))])
    assert seen == [5, 2]
    with pytest.raises(ValueError, match="5 ids but 1 of mask"):
        Rollout(**told, mask=(True,))


@pytest.mark.parametrize("name", ["model", "judge", "model_uncertainty"])
def test_a_rule_cannot_be_called_as_another_part(name: str) -> None:
    with pytest.raises(InputError, match="would be taken for another part"):
        combine([(1.0, Rule(length_lover, name))])


def test_an_oracle_as_a_reward_gives_what_the_oracle_gives() -> None:
    asked, answer = user_prompt("How do I bake bread?"), reply("Bread is easy to bake, and I am happy to help.")
    (rollout,) = fill_rewards(from_oracle(TextOracle()), [Rollout(prompt=asked, response=answer, stop="stop")])
    assert [rollout.reward] == TextOracle()([asked], [answer])


def test_rules_need_no_torch() -> None:
    code = "import sys, assay.rewards.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
