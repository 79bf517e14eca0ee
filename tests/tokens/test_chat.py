"""What goes into a model, token by token: compared by decoding, not by repeating how it is made."""

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from assay.records import Message, Prompt, Response, reply, user_prompt
from assay.settings import InputError
from assay.tokens.chat import Encoder, collate
from tiny import CONVERSATIONS, TOOL_CALL, tokenizer, turns

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
SHORT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + CONTENT + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STRIPPING = SHORT.replace("CONTENT", "(m.content | trim)")
GLUED = (  # its last space merges with the word that follows
    "{% for m in messages %}{{ m.role[0] + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
)
THINKING = SHORT.replace("CONTENT", "m.content").replace("assistant\n'", "assistant\n<think>\n'")
OTHER_END = SHORT.replace("CONTENT + '<|im_end|>", "m.content + ('' if m.role == 'assistant' else '<|im_end|>') + '")


def encoder(template: str | None = None) -> Encoder:
    words = tokenizer()
    if template is not None:
        words = copy.deepcopy(words)
        words.chat_template = template
    return Encoder(words)


def show(ids) -> str:
    return tokenizer().decode(list(ids))


def written(encoded) -> list[str]:
    """The runs of tokens that the mask counts, as text."""
    found, run = [], []
    for token, counts in [*zip(encoded.ids, encoded.mask, strict=True), (0, False)]:
        if counts:
            run.append(token)
        elif run:
            found.append(show(run))
            run = []
    return found


def user(content: str) -> Prompt:
    return user_prompt(content)


def test_a_prompt_ends_where_the_policy_starts():
    assert show(encoder().prompt(user("Hi."))) == f"{SYSTEM}<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"


def test_a_conversation_is_the_whole_template_and_a_completion_ends_at_its_end():
    words = encoder()
    whole = words.conversation(user("Hi."), reply("Hello."))
    ended = words.completion(user("Hi."), reply("Hello."))
    assert show(whole.trunk) == show(words.prompt(user("Hi.")))
    assert show(whole.ids) == "Hello.<|im_end|>\n"
    assert show(ended.ids) == "Hello.<|im_end|>" and ended.ids[-1] == words.eos
    assert whole.trunk + whole.ids == tuple(
        tokenizer().apply_chat_template(
            [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}], return_dict=True
        )["input_ids"]
    )
    assert whole.shared and written(whole) == written(ended) == ["Hello.<|im_end|>"]


def test_the_default_template_goes_on_with_a_newline():
    assert show(encoder().suffix(user("Hi."))) == "\n"
    assert encoder().suffix(Prompt(messages=turns(("text", "Hi")))) == ()


def test_system_prompts_replace_the_templates_own():
    prompt = Prompt(messages=turns(("system", "Be short."), ("user", "Why?")))
    assert show(encoder().prompt(prompt)).startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhy?")


@pytest.mark.parametrize("template", [None, STRIPPING], ids=["default", "stripping"])
@pytest.mark.parametrize(
    "response, expected",
    [
        (turns(("assistant", "One."), ("user", "More."), ("assistant", "Two, three.")), ["One.", "Two, three."]),
        (turns(("assistant", "🙂 naïve\n\nline"), ("user", "?"), ("assistant", "é🙂")), ["🙂 naïve\n\nline", "é🙂"]),
        (turns(("assistant", ""), ("user", "?"), ("assistant", "Now.")), ["", "Now."]),
        (turns(("assistant", "user"), ("user", "user"), ("assistant", "im_end")), ["user", "im_end"]),
        (turns(("assistant", "Yes."), ("user", "Last word.")), ["Yes."]),
    ],
)
def test_the_mask_covers_what_the_assistant_wrote_and_its_ends(response: Response, expected, template):
    words = encoder(template)
    for encoded in (words.conversation(user("Go."), response), words.completion(user("Go."), response)):
        assert encoded.shared
        assert written(encoded) == [f"{text}<|im_end|>" for text in expected]


def test_tool_turns_do_not_count():
    response = (TOOL_CALL, *turns(("tool", "blue"), ("assistant", "It is blue.")))
    encoded = encoder().completion(user("What is above?"), response)
    assert written(encoded) == ["<|im_end|>", "It is blue.<|im_end|>"]
    assert "<|im_start|>tool\nblue<|im_end|>" in show(encoded.ids)


def test_tools_and_template_arguments_are_rendered():
    template = "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}{{ mood }}" + SHORT.replace("CONTENT", "m.content")
    prompt = Prompt(messages=turns(("user", "Hi.")), tools=({"name": "clock"},), template_kwargs={"mood": "merry"})
    assert show(encoder(template).prompt(prompt)).startswith("[clock]merry<|im_start|>user")


def test_a_template_that_strips_scores_the_same_text():
    words = encoder(STRIPPING)
    assert words.conversation(user("Hi."), reply("  Hello. \n")) == words.conversation(user("Hi."), reply("Hello."))


def test_an_empty_answer_is_its_end_alone():
    encoded = encoder().completion(user("Hi."), reply(""))
    assert show(encoded.ids) == "<|im_end|>" and encoded.mask == (True,)


def test_where_the_prompts_ids_change_the_pair_goes_unshared():
    """' a' and ' and' are other tokens than ' ' followed by 'and': nothing is cut, the whole conversation is kept."""
    encoded = encoder(GLUED).conversation(user("Hi."), reply("and so on"))
    assert not encoded.shared and encoded.trunk == ()
    assert show(encoded.ids) == "u Hi.<|im_end|>a and so on<|im_end|>"
    assert written(encoded) == [" and so on<|im_end|>"]  # the merged token carries the answer's first word


@pytest.mark.parametrize("content", ["Hello.", "<b>bold</b>", "<think> twice", "t"])
def test_a_generation_prompt_that_does_not_stay_is_not_what_was_written(content):
    encoded = encoder(THINKING).completion(user("Hi."), reply(content))
    assert not encoded.shared
    assert written(encoded) == [f"{content}<|im_end|>"]


def test_an_answer_that_no_end_of_sequence_closes_is_not_cut():
    """Earlier turns end with the end of sequence, the answer does not: what follows the last one is the answer."""
    encoded = encoder(OTHER_END).completion(
        user("Hi."), turns(("assistant", "One."), ("user", "More."), ("assistant", "Two."))
    )
    assert show(encoded.ids).endswith("<|im_start|>assistant\nTwo.\n")
    assert written(encoded) == ["One.\n", "Two.\n"]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    template = SHORT.replace("CONTENT", "(m.content if loop.last else m.content[:1])")
    with pytest.raises(InputError, match=r"renders earlier turns differently once later ones follow.*renders '<\|im"):
        encoder(template).completion(
            user("Hi."), turns(("assistant", "One."), ("user", "More."), ("assistant", "Two."))
        )


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_template_that_leaves_a_message_out_is_refused_with_what_it_renders(role):
    template = SHORT.replace("CONTENT", f"('' if m.role == '{role}' else m.content)")
    prompt = Prompt(messages=turns(("system", "Be kind."), ("user", "Hi.")))
    with pytest.raises(InputError, match=rf"leaves out what the {role} says; it renders '<\|im_start\|>system"):
        encoder(template).prompt(prompt)


def test_a_template_may_change_what_is_said():
    words = encoder(SHORT.replace("CONTENT", "m.content | upper"))
    assert show(words.prompt(user("Hi there."))).startswith("<|im_start|>user\nHI THERE.")


def test_without_a_template_messages_are_refused_and_text_is_not():
    words = encoder("")
    words.tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        words.conversation(user("Hi."), reply("Hello."))
    text = words.conversation(Prompt(messages=turns(("text", "Hi"))), reply(" there.", plain=True))
    assert (show(text.trunk), show(text.ids)) == ("Hi", " there.<|im_end|>")


def test_text_whose_tokens_merge_across_the_split_goes_unshared():
    text = encoder().completion(Prompt(messages=turns(("text", "The colo")), id="x"), reply("ur is blue.", plain=True))
    assert not text.shared and show(text.ids) == "The colour is blue.<|im_end|>"
    assert written(text) == [" colour is blue.<|im_end|>"]


def test_text_and_messages_do_not_mix():
    with pytest.raises(InputError, match="a plain-text prompt needs plain-text responses"):
        encoder().conversation(Prompt(messages=turns(("text", "Hi"))), reply("Hello."))


def test_an_answer_without_prompt():
    text = encoder().conversation(Prompt(messages=()), reply("Alone.", plain=True))
    assert show(text.ids) == "Alone.<|im_end|>" and all(text.mask)
    chat = encoder().conversation(Prompt(messages=()), reply("Alone."))
    assert show(chat.ids) == f"{SYSTEM}<|im_start|>assistant\nAlone.<|im_end|>\n"
    assert written(chat) == ["Alone.<|im_end|>"]


def test_decoding_drops_special_tokens_and_changes_nothing_else():
    text = " It 's , as they say . Done !\n\n"
    assert encoder().decode([*tokenizer()(text)["input_ids"], encoder().eos]) == text


def test_rows_of_a_batch():
    """Two answers share a prompt, one goes alone: it has no first log-probability."""
    words = encoder()
    shared = [words.completion(user("Hi."), reply(text)) for text in ("Hello.", "No, not at all, never.")]
    alone = words.completion(*CONVERSATIONS[-1])
    batch = collate([shared, [alone]], 0)
    assert batch.group.tolist() == [0, 0, 1]
    assert [show(trunk) for trunk in batch.prompts.ids] == [show(shared[0].trunk), ""]
    assert batch.lengths.tolist() == [len(e.ids) for e in (*shared, alone)]
    for row, encoded in enumerate((*shared, alone)):
        length = len(encoded.ids)
        assert tuple(batch.ids[row, :length].tolist()) == encoded.ids
        assert not batch.mask[row, length:].any()
    assert batch.mask[:2, 0].all() and not batch.mask[2, 0] and int(batch.mask[2].sum()) == len(alone.ids) - 1


def test_unshared_answers_of_one_prompt_stay_apart_from_shared_ones():
    words = encoder(GLUED)
    group = [words.completion(user("Hi."), reply(text)) for text in ("and so on", "7")]
    batch = collate([group], 0)
    assert [encoded.shared for encoded in group] == [False, False] or batch.group.tolist() == [0, 1]
    assert torch.equal(batch.lengths, torch.tensor([len(e.ids) for e in group]))


def test_a_template_and_a_tokenizer_that_both_begin_a_text_begin_it_once():
    words = copy.deepcopy(tokenizer())
    words.bos_token = "<|endoftext|>"
    first = (words.bos_token, words.bos_token_id)
    words.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    words.chat_template = "{{ bos_token }}" + SHORT.replace("CONTENT", "m.content")
    assert words("Hi.")["input_ids"][0] == first[1]
    twice = words(words.apply_chat_template([{"role": "user", "content": "Hi."}], tokenize=False))["input_ids"]
    assert twice.count(first[1]) == 2  # what reading the rendered text as any other gives
    encoded = Encoder(words).conversation(user("Hi."), reply("Yes."))
    assert [*encoded.trunk, *encoded.ids].count(first[1]) == 1 and encoded.trunk[0] == first[1]


def test_the_fingerprint_tells_what_changed():
    before = encoder().fingerprint()
    assert encoder(STRIPPING).fingerprint() == before | {"template": encoder(STRIPPING).fingerprint()["template"]}
    assert encoder(STRIPPING).fingerprint()["template"] != before["template"]
    other = copy.deepcopy(tokenizer())
    other.pad_token = "<|im_start|>"
    changed = Encoder(other).fingerprint()
    assert [name for name in before if before[name] != changed[name]] == ["pad"]
    more = copy.deepcopy(tokenizer())
    more.add_tokens(["quick brown"])
    changed = Encoder(more).fingerprint()
    assert [name for name in before if before[name] != changed[name]] == ["tokens", "vocabulary", "words"]


def test_a_role_that_is_none_is_refused():
    with pytest.raises(ValueError, match="role must be one of"):
        Message("human", "Hi.")  # pyright: ignore[reportArgumentType]
