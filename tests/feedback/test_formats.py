import json
from typing import Any

import pytest

from assay.feedback import read_comparisons, read_demonstrations, read_prompts, read_texts
from assay.records import Comparison, Demonstration, Message, Rollout, reply, user_prompt
from feedback.rows import GOOD, turns


def one(row: dict[str, Any]) -> Comparison:
    (record,) = read_comparisons([row]).records
    return record


def test_strings_stay_plain_text() -> None:
    record = one(GOOD)
    assert record.prompt.messages == (Message("text", "Name a colour."),)
    assert record.responses == (reply("Blue.", plain=True), reply("Five.", plain=True))
    assert record.preference == 1.0


def test_message_prompt_with_string_answers() -> None:
    record = one({**GOOD, "prompt": turns(("system", "Be brief."), ("user", "Name a colour."))})
    assert [message.role for message in record.prompt.messages] == ["system", "user"]
    assert record.chosen == (Message("assistant", "Blue."),)


def test_implicit_prompt_is_the_common_turns_before_an_assistant_turn() -> None:
    start = turns(("user", "Hi"), ("assistant", "Hello"))
    record = one(
        {
            "chosen": [*start, *turns(("user", "2+2?"), ("assistant", "4"))],
            "rejected": [*start, *turns(("user", "2+2?"), ("assistant", "5"))],
        }
    )
    assert [message.content for message in record.prompt.messages] == ["Hi", "Hello", "2+2?"]
    assert record.responses == (reply("4"), reply("5"))


def test_implicit_prompt_steps_back_from_differing_user_turns_and_from_a_prefix() -> None:
    differing = one(
        {
            "chosen": turns(("user", "Hi"), ("assistant", "Hello"), ("user", "Joke"), ("assistant", "Knock")),
            "rejected": turns(("user", "Hi"), ("assistant", "Hello"), ("user", "Poem"), ("assistant", "Rose")),
        }
    )
    assert [message.content for message in differing.prompt.messages] == ["Hi"]
    assert [len(response) for response in differing.responses] == [3, 3]
    prefix = one(
        {
            "chosen": turns(("user", "Hi"), ("assistant", "Hello")),
            "rejected": turns(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye")),
        }
    )
    assert [message.content for message in prefix.prompt.messages] == ["Hi"]
    assert [len(response) for response in prefix.responses] == [1, 3]


def test_tool_calls_and_results_after_the_call_belong_to_the_prompt() -> None:
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}
    start = [*turns(("user", "Weather?")), call, {"role": "tool", "name": "f", "content": "sunny"}]
    row = {"chosen": [*start, *turns(("assistant", "Sunny."))], "rejected": [*start, *turns(("assistant", "Rain."))]}
    record = one({**row, "tools": json.dumps([{"type": "function", "function": {"name": "f"}}])})
    assert [message.role for message in record.prompt.messages] == ["user", "assistant", "tool"]
    assert record.prompt.messages[1].extra["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert record.prompt.tools[0]["function"]["name"] == "f"
    answer_calls = one({"prompt": start[:1], "chosen": [call], "rejected": turns(("assistant", "No idea."))})
    assert answer_calls.chosen[0].content == "" and "tool_calls" in answer_calls.chosen[0].extra


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: 2+2?\nA: It is 4", "Q: 2+2?\nA: It is 5", "Q: 2+2?\n"),
        ("What is 2+2? It is 4", "What is 2+2? It is 5", "What is 2+2?"),
        ("I think cats purr", "I think dogs bark", "I think"),
        ("Cats purr", "Dogs bark", ""),
        ("One line\n", "One line\nand more", "One"),  # the cut leaves words on both sides
    ],
)
def test_common_text_is_cut_back_to_a_boundary(chosen: str, rejected: str, prompt: str) -> None:
    record = one({"chosen": chosen, "rejected": rejected})
    assert "".join(message.content for message in record.prompt.messages) == prompt
    assert prompt + record.responses[0][0].content == chosen
    assert prompt + record.responses[1][0].content == rejected


def test_hh_transcripts_become_messages() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello \n\nHuman: 2+2?\n\nAssistant:"
    for row in (
        {"chosen": f"{start} 4", "rejected": f"{start} 5"},
        {"prompt": start, "chosen": " 4", "rejected": " 5"},
        {"prompt": start, "chosen": f"{start} 4", "rejected": f"{start} 5"},
    ):
        read = read_comparisons([row])
        record = read.records[0]
        assert [(message.role, message.content) for message in record.prompt.messages] == [
            ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"),
        ]  # fmt: skip
        assert record.responses == (reply("4"), reply("5"))
        assert read.report.notes["Human/Assistant transcript parsed into messages"] == 1


def test_prompt_repeated_inside_the_conversations_is_taken_once() -> None:
    for prompt in ("2+2?", turns(("user", "2+2?"))):
        row = {"prompt": prompt, "chosen": turns(("user", "2+2?"), ("assistant", "4"))}
        read = read_comparisons([{**row, "rejected": turns(("user", "2+2?"), ("assistant", "5"))}])
        assert read.records[0].prompt.messages == (Message("user", "2+2?"),)
        assert read.records[0].responses == (reply("4"), reply("5"))
        assert read.report.notes == {"prompt repeated in the answers taken out of them": 1}


@pytest.mark.parametrize(
    ("columns", "preference"),
    [
        ({}, 1.0), ({"preference": 0.25}, 0.25), ({"preference": 0}, 0.0), ({"label": "tie"}, 0.5),
        ({"winner": "tie (bothbad)"}, 0.5), ({"winner": "rejected"}, 0.0), ({"tie": True}, 0.5), ({"tie": False}, 1.0),
        ({"preference": 0.5, "tie": True}, 0.5), ({"label": "chosen"}, 1.0), ({"preference": "0.75"}, 0.75),
    ],
)  # fmt: skip
def test_judgements(columns: dict[str, Any], preference: float) -> None:
    assert one({**GOOD, **columns}).preference == preference


def test_other_columns_are_kept() -> None:
    row = {
        "id": 7,
        "annotator": "ann",
        "source": "web",
        "objective": "helpful",
        "margin": "1.5",
        "week": 3,
        "label": "x",
    }
    read = read_comparisons([{**GOOD, **row, "chat_template_kwargs": {"thinking": False}}])
    record = read.records[0]
    assert (record.id, record.annotator, record.source, record.objective) == ("7", "ann", "web", "helpful")
    assert record.meta == {"margin": 1.5, "week": 3, "label": "x"}
    assert record.prompt.template_kwargs == {"thinking": False}
    assert read.report.notes == {"label that is no judgement kept as meta": 1}


def test_demonstrations_prompts_and_texts() -> None:
    chat = turns(("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "Q2"), ("assistant", "A2"))
    (record,) = read_demonstrations([{"messages": chat, "topic": "t"}]).records
    assert [message.content for message in record.prompt.messages] == ["S", "Q"]
    assert [message.content for message in record.response] == ["A", "Q2", "A2"]
    assert record.meta == {"topic": "t"}
    (record,) = read_demonstrations([{"prompt": turns(("user", "Q")), "completion": "A"}]).records
    assert (record.prompt, record.response) == (user_prompt("Q"), reply("A"))
    (record,) = read_demonstrations([{"prompt": "Once", "completion": " upon"}]).records
    assert (record.prompt.messages[0], record.response) == (Message("text", "Once"), reply(" upon", plain=True))
    (prompt,) = read_prompts([{"prompt": turns(("user", "Q")), "id": "p1", "answer": 4}]).records
    assert (prompt.id, prompt.messages, prompt.meta) == ("p1", (Message("user", "Q"),), {"answer": 4})
    read = read_prompts([{"messages": chat}])
    assert [message.content for message in read.records[0].messages] == ["S", "Q", "A", "Q2"]
    assert read.report.notes == {"last answer of a conversation left out of its prompt": 1}
    (record,) = read_texts([{"text": "Once upon a time"}]).records
    assert record.prompt.messages == () and record.response == reply("Once upon a time", plain=True)


def test_feedback_that_serves_as_prompts_keeps_its_columns() -> None:
    """As rows in the field's columns do; where both name one, the prompt's own counts."""
    asked = user_prompt("Q", id="p1", meta={"answer": 4})
    told: dict[str, Any] = {"prompt": asked, "meta": {"answer": 5, "week": 3}}
    pair = Comparison(responses=(reply("A"), reply("B")), **told)
    shown = Demonstration(response=reply("A"), **told)
    sampled = Rollout(prompt=asked, response=reply("A"), stop="stop", reward=1.0)
    found = read_prompts([record.to_json() for record in (pair, shown, sampled, asked)]).records
    assert [prompt.meta for prompt in found] == [{"answer": 4, "week": 3}] * 2 + [{"answer": 4}] * 2
    assert {prompt.id for prompt in found} == {"p1"}
