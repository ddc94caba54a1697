import pytest

from fastft.data.formats import Conversation, Instruction, PromptCompletion, Text
from fastft.data.masking import Mask, Turn
from fastft.data.templates import Renderer

from .chat_templates import CHATML

END = 1  # the end token counts as one character behind the text


@pytest.fixture
def plain(tokenizer):
    return Renderer(tokenizer)


@pytest.fixture
def chat(make_tokenizer):
    return Renderer(make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>"))


def learned(rendered):
    return [rendered.text[start:end] for start, end in rendered.targets]


def test_a_document_is_learned_from_end_to_end(plain, chat):
    for renderer in (plain, chat):
        rendered = renderer.render(Text("once upon"), "f:1")
        assert (rendered.text, rendered.targets) == ("once upon", ((0, len("once upon") + END),))
        assert rendered.closed
        assert rendered.add_special_tokens
        assert rendered.divisible


def test_prompt_and_completion_are_joined_as_they_are(plain):
    rendered = plain.render(PromptCompletion("2 + 2 =", " 4"), "f:1")
    assert (rendered.text, rendered.targets) == ("2 + 2 = 4", ((7, 9 + END),))
    assert rendered.closed


@pytest.mark.parametrize("given", ["", " \n"])
def test_instructions_have_headings(plain, given):
    rendered = plain.render(Instruction("Add.", "2 and 2", "4"), "f:1")
    assert rendered.text == "### Instruction:\nAdd.\n\n### Input:\n2 and 2\n\n### Response:\n4"
    assert rendered.text[rendered.targets[0].start :] == "4"
    without = plain.render(Instruction("Add.", given, "4"), "f:1")
    assert without.text == "### Instruction:\nAdd.\n\n### Response:\n4"


def test_a_chat_template_renders_everything_but_documents(chat):
    for record in (PromptCompletion("Add.\n\n2 and 2", "4"), Instruction("Add.", "2 and 2", "4")):
        rendered = chat.render(record, "f:1")
        user = "<|im_start|>user\nAdd.\n\n2 and 2<|im_end|>\n"
        assert rendered.text == user + "<|im_start|>assistant\n4<|im_end|>\n"
        assert learned(rendered) == ["4<|im_end|>"]
        assert not rendered.add_special_tokens


def test_messages_need_a_template(plain):
    with pytest.raises(ValueError, match=r"f:1: messages need a chat template and this tokenizer has none"):
        plain.render(Conversation([{"role": "user", "content": "q"}]), "f:1")


def test_targets_say_whose_they_are(plain, chat):
    for renderer in (plain, chat):
        assert renderer.render(Text("once"), "f:1").turns == (Turn("", closing=4),)
    assert plain.render(PromptCompletion("p", "c"), "f:1").turns == (Turn("assistant", closing=2),)
    (turn,) = chat.render(PromptCompletion("p", "c"), "f:1").turns
    assert (turn.role, turn.message) == ("assistant", 1)


def test_the_mask_chooses_the_roles(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")
    messages = Conversation([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    assert learned(Renderer(tokenizer, Mask(train_roles=["user"])).render(messages, "f:1")) == ["q<|im_end|>"]
    assert learned(Renderer(tokenizer).render(messages, "f:1")) == ["a<|im_end|>"]


def test_options_of_a_template_need_one(tokenizer):
    with pytest.raises(
        ValueError, match=r"chat_template_kwargs: got \{'enable_thinking': False\} and no chat template"
    ):
        Renderer(tokenizer, chat_template_kwargs={"enable_thinking": False})


def test_blank_completions_are_no_targets(plain, chat):
    for renderer in (plain, chat):
        assert renderer.render(PromptCompletion("p", " \n"), "f:1").targets == ()
        assert renderer.render(Instruction("i", "", ""), "f:1").targets == ()
        assert renderer.render(Text("\n"), "f:1").targets == ()
