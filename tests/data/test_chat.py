import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastft.data.chat import ChatTemplate
from fastft.data.formats import Conversation
from fastft.data.masking import Mask
from fastft.data.turns import PROBE

from . import chat_templates

PROMPT = Mask()

END_OF = {
    "CHATML": "<|im_end|>",
    "LLAMA3": "<|eot_id|>",
    "QWEN3": "<|im_end|>",
    "GEMMA3": "<end_of_turn>",
    "MARKED": "<|im_end|>",
}
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def conversation(*contents, system=None):
    """Messages of user and assistant in turn."""
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]
    return Conversation([{"role": "system", "content": system}, *turns] if system is not None else turns)


def learned(rendered):
    return [rendered.text[start:end] for start, end in rendered.targets]


@pytest.fixture(scope="module")
def chats(make_tokenizer):
    """A ChatTemplate for each of END_OF; Llama-3's end of turn is not the tokenizer's end token, as in the original."""
    names = {name: "<|endoftext|>" if name == "LLAMA3" else end for name, end in END_OF.items()}
    return {
        name: ChatTemplate(make_tokenizer(chat_template=getattr(chat_templates, name), eos_token=eos))
        for name, eos in names.items()
    }


@pytest.mark.parametrize("name", END_OF)
def test_turns_and_their_end_tokens_are_found(chats, name):
    rendered = chats[name].render(conversation("q", "first", "q", "second", "more?"), "f:1", PROMPT)
    assert learned(rendered) == ["first" + END_OF[name], "second" + END_OF[name]]
    assert not rendered.closed


@pytest.mark.parametrize("name", END_OF)
@pytest.mark.parametrize("contents", [("a", "a", "a", "a"), ("user", "assistant"), ("model\n", "model"), ("n", "n\nn")])
def test_contents_that_look_like_the_template_or_each_other(chats, name, contents):
    rendered = chats[name].render(conversation(*contents, "end"), "f:1", PROMPT)
    assert learned(rendered) == [text + END_OF[name] for text in contents[1::2]]
    before = [rendered.text[:start] for start, _ in rendered.targets]
    assert all(text.endswith("\n") for text in before)


@pytest.mark.parametrize("name", ["LLAMA3", "GEMMA3"])
def test_templates_that_trim(chats, name):
    rendered = chats[name].render(conversation(" q ", "\n an answer  \n", "q"), "f:1", PROMPT)
    assert learned(rendered) == ["an answer" + END_OF[name]]


def test_templates_that_do_not_trim(chats):
    rendered = chats["CHATML"].render(conversation(" q ", "\n an answer  \n", "q"), "f:1", PROMPT)
    assert learned(rendered) == ["\n an answer  \n<|im_end|>"]


def test_a_system_message_within_the_user_turn(chats):
    rendered = chats["GEMMA3"].render(conversation("q", "a", system="be brief"), "f:1", PROMPT)
    assert rendered.text.startswith("<|bos|><start_of_turn>user\nbe brief\n\nq<end_of_turn>\n")
    assert learned(rendered) == ["a<end_of_turn>"]


def test_qwen_writes_a_thought_for_the_last_turn_only(chats):
    rendered = chats["QWEN3"].render(conversation("q", "first", "q", "second"), "f:1", PROMPT)
    assert learned(rendered) == ["first<|im_end|>", EMPTY_THOUGHT + "second<|im_end|>"]
    thoughtful = "<think>\nhm\n</think>\n\n"
    rendered = chats["QWEN3"].render(conversation("q", thoughtful + "first", "q", thoughtful + "second"), "f:1", PROMPT)
    assert learned(rendered) == ["first<|im_end|>", thoughtful + "second<|im_end|>"]


def test_a_generation_prompt_that_the_data_does_not_have(make_tokenizer):
    chat = ChatTemplate(make_tokenizer(chat_template=chat_templates.DEEPSEEK))
    rendered = chat.render(conversation("q", "first", "q", "second"), "f:1", PROMPT)
    assert learned(rendered) == ["first<|endoftext|>", "second<|endoftext|>"]
    rendered = chat.render(conversation("q", "<think>\nhm</think>first", "q", "<think>\n"), "f:1", PROMPT)
    assert learned(rendered) == ["hm</think>first<|endoftext|>", "<|endoftext|>"]


def test_a_generation_prompt_that_is_always_there(make_tokenizer):
    chat = ChatTemplate(make_tokenizer(chat_template=chat_templates.ASKING, eos_token="<|im_end|>"))
    rendered = chat.render(conversation("q", "first", "q", "second"), "f:1", PROMPT)
    assert rendered.text.endswith("second<|im_end|>\n<|im_start|>assistant\n")
    assert learned(rendered) == ["first<|im_end|>", "second<|im_end|>"]


def test_contents_that_hold_the_word_looked_for(chats):
    for name, chat in chats.items():
        contents = (PROBE, f"{PROBE}q and {PROBE}", f"{PROBE}{PROBE}", PROBE, "q")
        assert learned(chat.render(conversation(*contents), "f:1", PROMPT)) == [
            text + END_OF[name] for text in contents[1::2]
        ]


def test_without_a_closing_the_last_turn_gets_an_end_token(make_tokenizer):
    chat = ChatTemplate(make_tokenizer(chat_template=chat_templates.UNCLOSED))
    rendered = chat.render(conversation("q", "first", "q", "second"), "f:1", PROMPT)
    assert rendered.closed
    assert learned(rendered) == ["first", "second\n"]
    assert rendered.targets[-1].end == len(rendered.text) + 1
    assert not chat.render(conversation("q", "first", "q"), "f:1", PROMPT).closed


def test_a_closing_of_plain_text(make_tokenizer):
    template = chat_templates.CHATML.replace("<|im_end|>", " [end]")
    chat = ChatTemplate(make_tokenizer(chat_template=template))
    rendered = chat.render(conversation("q", "a [end]", "q", "b"), "f:1", PROMPT)
    assert learned(rendered) == ["a [end] [end]", "b [end]"]


@pytest.mark.parametrize(
    "tags", [("{% generation %}", "{% endgeneration %}"), ("{%- generation -%}", "{%-endgeneration%}")]
)
def test_generation_tags_are_believed_and_a_missing_end_token_is_added(make_tokenizer, tags):
    template = chat_templates.CHATML.replace(
        "message.content + '<|im_end|>\n' }}",
        "'' }}{% if message.role == 'assistant' %}" + tags[0] + "{{ message.content }}" + tags[1]
        + "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\n' }}",
    )  # fmt: skip
    chat = ChatTemplate(make_tokenizer(chat_template=template, eos_token="<|im_end|>"))
    plain = ChatTemplate(make_tokenizer(chat_template=chat_templates.CHATML, eos_token="<|im_end|>"))
    spoken = conversation("q", "first ", "", " ", "q", "second")
    assert chat.render(spoken, "f:1", PROMPT) == plain.render(spoken, "f:1", PROMPT)


def test_turns_may_have_more_than_a_content_but_no_call_that_is_not_written(chats):
    messages = conversation("q", "a", "q").messages
    called = [messages[0], {**messages[1], "name": "f"}, messages[2]]
    assert learned(chats["MARKED"].render(Conversation(called), "f:1", PROMPT)) == ["a<|im_end|>"]
    called = [messages[0], {**messages[1], "tool_calls": [{"name": "f"}]}, messages[2]]
    with pytest.raises(
        ValueError, match=r"f:1: message 1 \(assistant\) calls the tool 'f', which the chat template leaves out"
    ):
        chats["CHATML"].render(Conversation(called), "f:1", PROMPT)
    empty = [messages[0], {**messages[1], "tool_calls": None}, messages[2]]
    assert learned(chats["CHATML"].render(Conversation(empty), "f:1", PROMPT)) == ["a<|im_end|>"]


def test_blank_turns_and_conversations_without_an_assistant_have_no_target(chats):
    for name, chat in chats.items():
        assert learned(chat.render(conversation("q", " ", "q", "a", "q"), "f:1", PROMPT)) == ["a" + END_OF[name]]
        assert chat.render(conversation("q", "\n"), "f:1", PROMPT).targets == ()
        assert chat.render(conversation("q"), "f:1", PROMPT).targets == ()


def test_a_conversation_may_begin_with_the_assistant(chats):
    greeting = Conversation([{"role": "assistant", "content": "hello"}, {"role": "user", "content": "q"}])
    assert learned(chats["CHATML"].render(greeting, "f:1", PROMPT)) == ["hello<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{{ m.content + m.content + eos_token }}{% endfor %}",
            r"f:1: message 1 \(assistant\): the chat template writes its content 2 times",
        ),
        (
            "{% for m in messages %}{{ m.content + (m.content | length | string) + eos_token }}{% endfor %}",
            r"f:1: message 1 \(assistant\): the chat template writes what follows it differently",
        ),
        (
            "{% for m in messages %}{{ (m.content | length | string) + m.content + eos_token }}{% endfor %}",
            r"f:1: message 1 \(assistant\): the chat template writes what precedes it differently",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% if m.content != 'b' %}{{ eos_token }}{% endif %}{% endfor %}",
            r"f:1: message 3 \(assistant\): the chat template writes what follows it differently",
        ),
        (
            "{% for m in messages %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endfor %}",
            r"f:1: the chat template's {% generation %} blocks do not match the 2 assistant turns",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{% filter trim %}"
            "{% generation %} {{ m.content + eos_token }}{% endgeneration %}{% endfilter %}{% endif %}{% endfor %}",
            "tokenizer: the chat template writes another text when marks tell its turns apart",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% if loop.index0 < 2 %}{{ eos_token }}{% endif %}{% endfor %}",
            r"f:1: the chat template closes this conversation not by '<\|endoftext\|>'",
        ),
        (
            "{% for i in range(messages | length) %}{{ messages[i].content + eos_token }}{% endfor %}",
            r"f:1: message 1 \(assistant\): the chat template writes it in 0 places of its loops over the messages",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{{ m.role }}{% endfor %}",
            r"f:1: message 1 \(assistant\): the chat template writes it in 2 places of its loops over the messages",
        ),
        (
            "{% for m in messages %}{{ m.content + (messages[loop.index0 - 1].content) + eos_token }}{% endfor %}",
            r"f:1: message 1 \(assistant\): the chat template writes another message within it",
        ),
    ],
)
def test_no_mask_is_made_from_a_template_that_is_not_understood(make_tokenizer, template, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate(make_tokenizer(chat_template=template)).render(conversation("q", "a", "q", "b"), "f:1", PROMPT)


@pytest.mark.parametrize("shown", ["{{ m.role }}", "{{ m.content | upper }}"])
def test_a_template_that_hides_what_the_assistant_says_is_refused(make_tokenizer, shown):
    template = f"{{% for m in messages %}}{shown}{{{{ eos_token }}}}{{% endfor %}}"
    with pytest.raises(ValueError, match="the chat template leaves out what the assistant says"):
        ChatTemplate(make_tokenizer(chat_template=template))


def test_control_tokens_of_the_template_may_not_be_in_the_data(chats):
    with pytest.raises(ValueError, match=r"f:1: message 0 \(user\) holds '<\|im_end\|>', which the chat template"):
        chats["CHATML"].render(conversation("q<|im_end|>", "a"), "f:1", PROMPT)
    with pytest.raises(ValueError, match=r"f:1: message 1 \(assistant\) holds '<\|endoftext\|>'"):
        chats["LLAMA3"].render(conversation("q", "a<|endoftext|>"), "f:1", PROMPT)
    assert learned(chats["GEMMA3"].render(conversation("q<|im_end|>", "a"), "f:1", PROMPT)) == ["a<end_of_turn>"]


def test_what_the_template_refuses_is_said_in_its_words(chats):
    unordered = Conversation([{"role": "user", "content": "q"}, {"role": "user", "content": "q"}])
    with pytest.raises(ValueError, match="f:1: the chat template refuses the messages: roles must alternate"):
        chats["GEMMA3"].render(unordered, "f:1", PROMPT)


CONTENTS = st.lists(st.text(max_size=20).filter(str.strip), min_size=2, max_size=6)


@pytest.mark.parametrize("name", END_OF)
@given(contents=CONTENTS)
def test_any_contents(chats, name, contents):
    trims = name in ("LLAMA3", "GEMMA3")
    rendered = chats[name].render(conversation(*contents), "f:1", PROMPT)
    written = [text.strip() if trims else text for text in contents[1::2]]
    if name == "QWEN3" and len(contents) % 2 == 0:
        written[-1] = EMPTY_THOUGHT + written[-1]
    assert learned(rendered) == [text + END_OF[name] for text in written]
    asked = chats[name].render(conversation(*contents, system="be brief"), "f:1", Mask(train_roles=["user"]))
    assert learned(asked) == [(text.strip() if trims else text) + END_OF[name] for text in contents[::2]]


def test_smollm2_as_it_is(smollm2):
    chat = ChatTemplate(smollm2)
    rendered = chat.render(conversation("q", " first\n", "q", "second"), "f:1", PROMPT)
    assert rendered.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert learned(rendered) == [" first\n<|im_end|>", "second<|im_end|>"]
    assert not rendered.closed
