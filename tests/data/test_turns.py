import pytest

from fastft.data.chat import ChatTemplate
from fastft.data.formats import Conversation
from fastft.data.masking import Mask

from . import chat_templates
from .test_chat import EMPTY_THOUGHT, END_OF, PROMPT, chats, conversation, learned

__all__ = ["chats"]  # the fixture of test_chat


def test_text_behind_the_loop_is_no_part_of_a_turn(make_tokenizer):
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}{{ messages[-1].content }}"
    rendered = ChatTemplate(make_tokenizer(chat_template=template)).render(conversation("q", "a"), "f:1", PROMPT)
    assert rendered.text.endswith("a<|endoftext|>a")
    assert learned(rendered) == ["a<|endoftext|>"]


def test_turns_say_whose_they_are_and_where_they_close(chats):
    for name, chat in chats.items():
        rendered = chat.render(conversation("q", "a", "q", "b", system="s"), "f:1", PROMPT)
        assert [(turn.role, turn.message, turn.weight) for turn in rendered.turns] == [
            ("assistant", 2, None),
            ("assistant", 4, None),
        ]
        for span, turn in rendered.spoken():
            assert rendered.text[turn.closing : span.end] == END_OF[name]


@pytest.mark.parametrize("name", ["CHATML", "LLAMA3", "QWEN3", "GEMMA3"])
def test_turns_of_other_roles(chats, name):
    end = END_OF[name]
    spoken = conversation("first q", "a", "a", "b", system="first")
    rendered = chats[name].render(spoken, "f:1", Mask(train_roles=["user"]))
    assert learned(rendered) == ["first q" + end, "a" + end]
    assert [turn.role for turn in rendered.turns] == ["user", "user"]
    rendered = chats[name].render(spoken, "f:1", Mask(train_roles=["user", "assistant"]))
    assert [text.removeprefix(EMPTY_THOUGHT) for text in learned(rendered)] == [
        "first q" + end,
        "a" + end,
        "a" + end,
        "b" + end,
    ]


CALL = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
CALLING = Conversation(
    [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "42"},
        {"role": "tool", "content": "43"},
        {"role": "assistant", "content": "so"},
    ]
)
QWEN_CALL = '\n<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("name", "eos", "calls", "tools"),
    [
        (
            "QWEN3_TOOLS",
            "<|im_end|>",
            [QWEN_CALL, "so<|im_end|>"],
            ["42\n</tool_response>", "43\n</tool_response><|im_end|>"],
        ),
        (
            "LLAMA31",
            "<|eot_id|>",
            ['{"name": "look", "parameters": {"x": 1}}<|eot_id|>', "so<|eot_id|>"],
            ['42"<|eot_id|>', '43"<|eot_id|>'],
        ),
        (
            "MISTRAL",
            "<|endoftext|>",
            ['[TOOL_CALLS] [{"name": "look"}]<|endoftext|>', "so<|endoftext|>"],
            ["42[/TOOL_RESULTS]", "43[/TOOL_RESULTS]"],
        ),
    ],
)
def test_tool_calls_are_learned_and_results_are_not(make_tokenizer, name, eos, calls, tools):
    chat = ChatTemplate(make_tokenizer(chat_template=getattr(chat_templates, name), eos_token=eos))
    assert learned(chat.render(CALLING, "f:1", PROMPT)) == calls
    assert learned(chat.render(CALLING, "f:1", Mask(train_roles=["tool"]))) == tools
    both = learned(chat.render(CALLING, "f:1", Mask(train_roles=["assistant", "tool"])))
    assert both == [calls[0], *tools, calls[1]]


@pytest.mark.parametrize("name", ["FORWARD", "NESTED"])
def test_results_written_within_the_turn_that_called_are_not_learned(make_tokenizer, name):
    chat = ChatTemplate(make_tokenizer(chat_template=getattr(chat_templates, name), eos_token="<end_of_turn>"))
    assert learned(chat.render(conversation("q", "a", "q", "b"), "f:1", PROMPT)) == ["a<end_of_turn>", "b<end_of_turn>"]
    messages = [message for message in CALLING.messages if "tool_calls" not in message]
    messages.insert(1, {"role": "assistant", "content": "I look"})
    with pytest.raises(
        ValueError, match=r"f:1: message 1 \(assistant\): the chat template writes another message within"
    ):
        chat.render(Conversation(messages), "f:1", PROMPT)


def test_other_messages_within_a_turn_need_no_content_to_be_seen(make_tokenizer):
    inner = "{% for later in messages[loop.index :] %}[{{ later.role }}]{% endfor %}"
    template = "{% for m in messages %}{{ m.content }}" + inner + "{{ eos_token }}{% endfor %}"
    chat = ChatTemplate(make_tokenizer(chat_template=template))
    said, asked = {"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}
    assert learned(chat.render(Conversation([said]), "f:1", PROMPT)) == ["a<|endoftext|>"]
    with pytest.raises(
        ValueError, match=r"f:1: message 0 \(assistant\): the chat template writes another message within"
    ):
        chat.render(Conversation([said, asked]), "f:1", PROMPT)


def test_only_the_assistant_is_prompted_for(make_tokenizer):
    named = "{{ '[' + ('' if m.role == 'assistant' else m.role) + '] ' + m.content + eos_token }}"
    template = "{% for m in messages %}" + named + "{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    chat = ChatTemplate(make_tokenizer(chat_template=template))
    rendered = chat.render(conversation("q", "a"), "f:1", Mask(train_roles=["user", "assistant"]))
    assert learned(rendered) == ["q<|endoftext|>", "] a<|endoftext|>"]


def test_a_content_that_the_template_leaves_out_beside_a_call(make_tokenizer):
    chat = ChatTemplate(make_tokenizer(chat_template=chat_templates.LLAMA31, eos_token="<|eot_id|>"))
    messages = [CALLING.messages[0], {**CALLING.messages[1], "content": "let me see"}]
    with pytest.raises(
        ValueError, match=r"f:1: message 1 \(assistant\): the chat template leaves out its content beside"
    ):
        chat.render(Conversation(messages), "f:1", PROMPT)


def test_a_template_without_a_generation_prompt(make_tokenizer):
    chat = ChatTemplate(make_tokenizer(chat_template=chat_templates.MISTRAL))
    rendered = chat.render(conversation("q", " a ", "q", "b", system="s"), "f:1", PROMPT)
    assert learned(rendered) == ["a<|endoftext|>", "b<|endoftext|>"]
    assert learned(chat.render(conversation("q", "a", "q", system="s"), "f:1", Mask(train_roles=["user"]))) == [
        "q[/INST]",
        "q[/INST]",
    ]


def test_an_end_token_that_is_marked_behind_the_loop(make_tokenizer):
    chat = ChatTemplate(make_tokenizer(chat_template=chat_templates.BEHIND))
    rendered = chat.render(conversation("q", "a", "q", "b"), "f:1", PROMPT)
    assert learned(rendered) == ["a<|im_end|>", "b<|im_end|>", "<|endoftext|>"]
    assert [turn.message for turn in rendered.turns] == [1, 3, 3]


def test_templates_are_told_their_options(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=chat_templates.QWEN3_TOOLS, eos_token="<|im_end|>")
    rendered = ChatTemplate(tokenizer, {"enable_thinking": False}).render(conversation("q", "a"), "f:1", PROMPT)
    assert rendered.text.endswith(EMPTY_THOUGHT + "a<|im_end|>\n")
    assert learned(rendered) == ["a<|im_end|>"]  # the empty thought is given, as it is when the model is used so
    dated = make_tokenizer(chat_template=chat_templates.LLAMA31, eos_token="<|eot_id|>")
    rendered = ChatTemplate(dated, {"date_string": "26 Jul 2024"}).render(conversation("q", "a"), "f:1", PROMPT)
    assert "Today Date: 26 Jul 2024\n" in rendered.text
    with pytest.raises(ValueError, match="chat_template_kwargs: 'tokenize' is no option of a template"):
        ChatTemplate(tokenizer, {"tokenize": True})


def test_what_messages_say_of_their_training(chats):
    first, second, third, fourth = conversation("q", "a", "q", "b").messages
    said = Conversation([{**first, "weight": 0.5}, {**second, "train": False}, third, {**fourth, "weight": 2}])
    for name, chat in chats.items():
        if name == "MARKED":
            continue
        plain = chat.render(conversation("q", "a", "q", "b"), "f:1", PROMPT)
        rendered = chat.render(said, "f:1", PROMPT)
        assert rendered.text == plain.text  # the template does not see it
        assert [(turn.role, turn.weight) for turn in rendered.turns] == [("user", 0.5), ("assistant", 2.0)]
        assert rendered.barred == ()
        rendered = chat.render(said, "f:1", Mask(mask="none"))
        assert [rendered.text[start:end] for start, end in rendered.barred] == ["a" + END_OF[name]]
        trained = Conversation([{**first, "train": True}, {**second, "weight": 0}, {**third, "train": False}])
        rendered = chat.render(trained, "f:1", PROMPT)
        assert [(turn.role, turn.weight) for turn in rendered.turns] == [("user", 1.0)]
