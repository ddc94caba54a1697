from dataclasses import replace

import pytest

from fastft.data.encoding import encode
from fastft.data.formats import Conversation, Instruction, PromptCompletion, Text, Tokenised
from fastft.data.masking import Mask
from fastft.data.objectives import make_objective
from fastft.data.templates import Renderer

from .built import build
from .chat_templates import CHATML
from .closings import closing_tokens

TALK = [
    {"role": "user", "content": "the question"},
    {"role": "assistant", "content": "the answer"},
    {"role": "user", "content": "another"},
    {"role": "assistant", "content": "the last of the words"},
]


@pytest.fixture
def chat(make_tokenizer):
    return make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>", pad_token="<|im_end|>")


def tokens(tokenizer, record, mask=None, columns=None):
    """Tokens of a record, their weights and the tokens that close its turns."""
    mask = mask or Mask()
    rendered = Renderer(tokenizer, mask).render(record, "f:1", columns or {})
    (made,) = encode([replace(rendered, learned=tuple(mask(rendered)))], tokenizer)
    return made, closing_tokens(made.offsets, rendered)


def learned(tokenizer, made):
    return tokenizer.decode([token for token, weight in zip(made.ids, made.weights, strict=True) if weight])


def test_a_mask_of_spans_survives_merges_over_its_seams(merging):
    made, _ = tokens(merging, PromptCompletion("ab", "cde"), Mask(span_weights={"d": 0.5, "e": 2.0}))
    assert merging.convert_ids_to_tokens(made.ids) == ["a", "bcd", "e", "<eos>"]
    assert made.weights == [0.0, 1.0, 2.0, 1.0]  # c weighs 1, and so does the token that holds it
    made, _ = tokens(merging, PromptCompletion("abcd", "e"), Mask(keep_spans="d"))
    assert made.weights == [0.0, 1.0, 1.0, 1.0]


def test_the_end_token_of_a_completion(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    made, closing = tokens(tokenizer, PromptCompletion("the user", " writes"))
    assert closing == [len(made.ids) - 1]
    assert made.weights[-1] == 1.0
    made, _ = tokens(tokenizer, PromptCompletion("the user", " writes"), Mask(train_on_eot=False))
    assert (made.ids[-1], made.weights[-1]) == (tokenizer.eos_token_id, 0.0)
    assert any(made.weights)


def test_each_end_of_turn_is_learned_once_or_not_at_all(chat):
    made, closing = tokens(chat, Conversation(TALK))
    assert learned(chat, made) == "the answer<|im_end|>the last of the words<|im_end|>"
    assert [made.ids[place] for place in closing] == [chat.eos_token_id] * 2
    made, closing = tokens(chat, Conversation(TALK), Mask(train_on_eot=False))
    assert learned(chat, made) == "the answerthe last of the words"
    assert [made.weights[place] for place in closing] == [0.0, 0.0]
    made, closing = tokens(chat, Conversation(TALK), Mask(train_turns="last"))
    assert learned(chat, made) == "the last of the words<|im_end|>"
    assert [made.weights[place] for place in closing] == [0.0, 1.0]


def test_weights_of_messages_reach_their_tokens(chat):
    said = [TALK[0], {**TALK[1], "weight": 0.25}, {**TALK[2], "train": True}, {**TALK[3], "train": False}]
    made, _ = tokens(chat, Conversation(said))
    assert learned(chat, made) == "the answer<|im_end|>another<|im_end|>"
    assert sorted(set(made.weights)) == [0.0, 0.25, 1.0]


def test_a_response_header_is_masked_unless_it_is_kept(tokenizer):
    record = Instruction("the words", "", "the answer")
    made, _ = tokens(tokenizer, record)
    assert learned(tokenizer, made) == "the answer<|endoftext|>"
    made, _ = tokens(tokenizer, record, Mask(keep_spans="### Response:\n"))
    assert learned(tokenizer, made) == "### Response:\nthe answer<|endoftext|>"
    made, _ = tokens(tokenizer, record, Mask(mask="completion"))
    assert learned(tokenizer, made) == "### Instruction:\nthe words\n\n### Response:\n"


def test_strings_of_a_column_are_kept(chat):
    mask = Mask(keep_field="keep")
    made, _ = tokens(chat, PromptCompletion("the user reads", "words"), mask, {"keep": ["user"]})
    assert learned(chat, made) == "user userwords<|im_end|>"  # the role is called so too; the space is in the token
    with pytest.raises(ValueError, match=r"f:1: 'keep' \(keep_field\): 'writes' is not in the text"):
        tokens(chat, PromptCompletion("the user reads", "words"), mask, {"keep": "writes"})


def test_tokens_are_handed_on_untouched(tokenizer, chat):
    ids, weights = tokenizer("the user reads").input_ids, [0.0, 0.5, 2.0]
    ids = ids[: len(weights)]
    for known in (tokenizer, chat):
        renderer = Renderer(known)
        text, given = renderer.render(Text("the words"), "f:1"), renderer.render(Tokenised(ids, weights), "f:2")
        assert given.opening == tokenizer.decode(ids)
        first, second, third = encode([given, text, given], known)
        assert first == third == (ids, weights, [(0, 0)] * 3)
        assert second.ids[-1] == known.eos_token_id
    beyond = [*ids, len(tokenizer)]
    with pytest.raises(
        ValueError, match=rf"f:1: input_ids\[3\] is {len(tokenizer)}, and the tokenizer has tokens 0 to"
    ):
        Renderer(tokenizer).render(Tokenised(beyond, [1.0] * 4), "f:1")


def test_a_turn_that_is_cut_off_keeps_the_mask_of_the_rest(chat):
    rendered = Renderer(chat).render(Conversation(TALK), "f:1")
    whole, _ = tokens(chat, Conversation(TALK))
    length = len(whole.ids) - 4
    objective = make_objective("clm", chat, {"max_length": length})
    corpus = build([(rendered, "f:1")], 1, objective, Mask(), "error")
    (sample,) = corpus.samples
    assert sample.input_ids == whole.ids[:length]
    assert sample.weights == whole.weights[:length]
    assert corpus.stats.truncated == 1


def test_smollm2_learns_its_answers_and_their_ends(smollm2):
    assert smollm2.pad_token_id == smollm2.eos_token_id
    made, closing = tokens(smollm2, Conversation(TALK))
    assert learned(smollm2, made) == "the answer<|im_end|>the last of the words<|im_end|>"
    assert [(made.ids[place], made.weights[place]) for place in closing] == [(smollm2.eos_token_id, 1.0)] * 2
    first = made.weights.index(1.0)
    assert smollm2.decode(made.ids[:first]).endswith(
        "the question<|im_end|>\n<|im_start|>assistant\n"
    )  # not off by one
    made, _ = tokens(smollm2, Conversation(TALK), Mask(train_roles=["user"], train_turns="last"))
    assert learned(smollm2, made) == "another<|im_end|>"
