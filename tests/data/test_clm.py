import re
from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertLMHeadModel, ByT5Tokenizer

from fastft.data.formats import Conversation, PromptCompletion, Text
from fastft.data.masking import policy
from fastft.data.objectives import make_objective
from fastft.data.objectives.objective import NOTHING
from fastft.data.sample import Sample
from fastft.data.templates import Renderer

from .built import build as build_corpus
from .chat_templates import CHATML

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def build(tokenizer, *records, mask="prompt", max_length=1024, on_empty="error"):
    renderer = Renderer(tokenizer)
    rendered = [(renderer.render(record, f"f:{line}"), f"f:{line}") for line, record in enumerate(records, start=1)]
    objective = make_objective("clm", tokenizer, {"max_length": max_length})
    return build_corpus(rendered, len(rendered), objective, policy(mask), on_empty)


def sample(tokenizer, record, **options):
    (made,) = build(tokenizer, record, **options).samples
    return made


def learned(tokenizer, made):
    return tokenizer.decode([token for token, weight in zip(made.input_ids, made.weights, strict=True) if weight])


@given(prompt=WORDS, completion=WORDS.filter(str.strip), trimmed=st.booleans())
def test_what_is_learned_is_the_completion_and_its_end(make_tokenizer, prompt, completion, trimmed):
    tokenizer = make_tokenizer(trim_offsets=trimmed)
    made = sample(tokenizer, PromptCompletion(prompt, completion), max_length=10_000)
    assert set(made.weights) <= {0.0, 1.0}
    assert made.weights[0] == 0.0
    assert made.input_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(made.input_ids) == prompt + completion + tokenizer.eos_token
    if not prompt:  # the first token of all has nothing to be predicted from
        assert made.weights == [0.0] + [1.0] * (len(made.weights) - 1)
        return
    first = made.weights.index(1.0)
    assert made.weights == [0.0] * first + [1.0] * (len(made.weights) - first)
    before, after = (len(tokenizer.decode(ids)) for ids in (made.input_ids[:first], made.input_ids[first:]))
    assert before <= len(prompt) or "\ufffd" in tokenizer.decode(made.input_ids[:first])
    # characters of the prompt are learned only as a part of the one token that straddles the seam
    straddling = tokenizer.decode(made.input_ids[first : first + 1])
    excess = after - len(completion + tokenizer.eos_token)
    assert excess < max(1, len(straddling)) or "\ufffd" in straddling


def test_a_token_merged_over_the_seam_is_learned(merging):
    made = sample(merging, PromptCompletion("ab", "cd"))
    assert merging.convert_ids_to_tokens(made.input_ids) == ["a", "bcd", "<eos>"]
    assert made.weights == [0.0, 1.0, 1.0]
    # the prefix on its own would have been two tokens, and its length would have masked the completion
    assert len(merging("ab").input_ids) == 2


def test_a_seam_at_a_space(merging):
    for record in (PromptCompletion("a?", " b"), PromptCompletion("a? ", "b")):
        made = sample(merging, record)
        assert merging.convert_ids_to_tokens(made.input_ids) == ["a", "? ", "b", "<eos>"]
        assert made.weights == ([0.0, 1.0, 1.0, 1.0] if record.prompt == "a?" else [0.0, 0.0, 1.0, 1.0])


def test_padding_with_the_end_token_leaves_it_learned(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    made = sample(tokenizer, PromptCompletion("the user", " writes"))
    assert (made.input_ids[-1], made.weights[-1]) == (tokenizer.eos_token_id, 1.0)


@pytest.mark.parametrize("adds", ["", "<|bos|> $A", "$A <|endoftext|>", "<|bos|> $A <|endoftext|>"])
@pytest.mark.parametrize("written", ["", "<|endoftext|>"])
def test_one_beginning_and_one_end_token_whoever_writes_them(make_tokenizer, adds, written):
    tokenizer = make_tokenizer(adds=adds)
    for record in (Text("<|bos|>the user" + written), PromptCompletion("<|bos|>the", " user" + written)):
        made = sample(tokenizer, record)
        assert tokenizer.decode(made.input_ids) == "<|bos|>the user<|endoftext|>"
        assert made.weights[-1] == 1.0
    assert (sample(tokenizer, Text("the")).input_ids[0] == tokenizer.bos_token_id) == adds.startswith("<|bos|>")


def test_nothing_masked_learns_everything_but_the_first_token(make_tokenizer):
    for tokenizer in (make_tokenizer(), make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")):
        made = sample(tokenizer, PromptCompletion("the user", " writes"), mask="none")
        assert made.weights == [0.0] + [1.0] * (len(made.input_ids) - 1)


def test_each_turn_ends_once_and_nothing_behind_the_last_is_kept(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")
    roles = ("user", "assistant", "user", "assistant", "user")
    messages = [{"role": role, "content": f"the {role}"} for role in roles]
    made = sample(tokenizer, Conversation(messages))
    assert learned(tokenizer, made) == "the assistant<|im_end|>the assistant<|im_end|>"
    assert made.weights[-1] == 1.0


@given(documents=st.lists(WORDS.filter(str.strip), min_size=1, max_size=5), max_length=st.integers(2, 20))
def test_documents_are_cut_into_blocks_that_learn_each_token_once(tokenizer, documents, max_length):
    corpus = build(tokenizer, *map(Text, documents), max_length=max_length)
    assert all(2 <= len(made.input_ids) <= max_length for made in corpus.samples)
    assert all(made.weights == [0.0] + [1.0] * (len(made.input_ids) - 1) for made in corpus.samples)
    tokens = [[*tokenizer(document).input_ids, tokenizer.eos_token_id] for document in documents]
    joined = [token for made in corpus.samples for token in made.input_ids[1:]]
    assert joined == [token for ids in tokens for token in ids[1:]]
    assert corpus.stats.truncated == 0


def test_a_completion_that_is_cut_off_ends_without_an_end_token(tokenizer):
    record = PromptCompletion("the", " user and the assistant")
    whole = sample(tokenizer, record)
    corpus = build(tokenizer, record, max_length=len(whole.input_ids) - 2)
    assert corpus.samples[0].input_ids == whole.input_ids[:-2]
    assert tokenizer.eos_token_id not in corpus.samples[0].input_ids
    assert (corpus.stats.truncated, corpus.stats.dropped) == (1, 0)
    assert build(tokenizer, record, max_length=len(whole.input_ids)).stats.truncated == 0


LONG = PromptCompletion("the user of the model reads", " words")
BLANK = PromptCompletion("the\n user", " ")
GOOD = PromptCompletion("the", " user")
WHY = {
    "cut": "max_length=5 cuts off all of its target",
    "blank": NOTHING,
}


def test_a_record_with_nothing_to_learn_is_an_error_that_names_it(tokenizer):
    with pytest.raises(
        ValueError, match=r"sample 1 \(f:2, 'the user of the model reads words'\) has .*: " + WHY["cut"]
    ):
        build(tokenizer, GOOD, LONG, max_length=5)
    with pytest.raises(ValueError, match=r"sample 0 \(f:1, 'the user'\) has .*: " + re.escape(WHY["blank"])):
        build(tokenizer, BLANK)
    with pytest.raises(ValueError, match=r"sample 0 \(f:1, ''\) has nothing to learn"):
        build(tokenizer, Text(""))


def test_without_a_turn_of_the_roles_that_are_trained_these_are_named(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")
    with pytest.raises(ValueError, match=r"has nothing to learn: .* or no turn of a role in train_roles \(assistant"):
        build(tokenizer, Conversation([{"role": "user", "content": "the user"}]))


def test_dropped_records_are_counted_by_reason(tokenizer):
    corpus = build(tokenizer, LONG, GOOD, BLANK, LONG, Text("\n"), max_length=5, on_empty="drop")
    assert len(corpus.samples) == corpus.stats.samples == 1
    assert (corpus.stats.dropped, corpus.stats.drop_reasons) == (4, {WHY["cut"]: 2, WHY["blank"]: 2})
    with pytest.raises(ValueError, match=r"all 2 records were dropped\n(.*\n)+1 records dropped: max_length=5"):
        build(tokenizer, BLANK, LONG, max_length=5, on_empty="drop")


def test_stats_are_of_what_is_kept(tokenizer):
    corpus = build(tokenizer, GOOD, LONG)
    assert corpus.stats.tokens == sum(corpus.lengths)
    assert corpus.stats.supervised_tokens == sum(sum(made.weights) for made in corpus.samples)


def test_examples_show_the_last_target_and_what_comes_before_it(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")
    contents = ("a question", "an answer", "another", "the last answer", "thanks")
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    (example,) = build(tokenizer, Conversation(messages)).examples
    assert example.completion == "the last answer"
    assert example.prompt.endswith("another<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(example.prompt_ids) == example.prompt
    assert example.origin == "f:1"


def test_a_sample_of_a_conversation_opens_before_its_last_turn(make_tokenizer):
    tokenizer = make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")
    contents = ("a question", "an answer", "another", "the last answer", "thanks")
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    corpus = build(tokenizer, Conversation(messages))
    (example,), (made,) = corpus.examples, corpus.samples
    opened = make_objective("clm", tokenizer, {}).opening(made, "f:1")
    assert (opened.prompt_ids, opened.completion) == (example.prompt_ids, example.completion)
    prefix = make_objective("prefix_lm", tokenizer, {})  # here the prompt is what is read in both directions
    opened = prefix.opening(replace(made, boundary=made.weights.index(1.0)), "f:1")
    assert opened.prompt.endswith("a question\nassistant\n")
    assert opened.completion == "an answer"


def test_an_opening_is_followed_by_one_learned_stretch_that_is_not_blank(tokenizer):
    objective = make_objective("clm", tokenizer, {})
    ids = tokenizer("the user reads the words of the model").input_ids
    end = tokenizer.eos_token_id
    n = len(ids)
    # a turn whose end token alone is learned last, and a hole in front of it
    opened = objective.opening(Sample([*ids, end], [0.0] * (n - 2) + [1.0, 0.0, 2.0]), "f:1")
    assert opened.prompt_ids == ids[: n - 2]
    assert opened.completion == tokenizer.decode(ids[n - 2 : n - 1]).strip()
    whole = objective.opening(Sample(ids, [0.0] + [1.0] * (n - 1)), "f:1")
    assert (whole.prompt_ids, whole.completion) == (ids[: n // 4], tokenizer.decode(ids[n // 4 :]).strip())


CAUSAL = {"is_decoder": True}


@pytest.mark.parametrize(
    ("kind", "options", "generates"),
    [("masked", {}, False), ("head", {}, False), ("head", CAUSAL, True), ("pretraining", {}, False)],
)
def test_prompts_are_completed_by_models_that_are_causal_by_themselves(tokenizer, kind, options, generates):
    """BertLMHeadModel can generate in transformers' eyes, and would read a prompt in both directions."""
    kinds = {"masked": BertForMaskedLM, "head": BertLMHeadModel, "pretraining": BertForPreTraining}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    model = kinds[kind](BertConfig(vocab_size=len(tokenizer), **sizes, **options))
    objective = make_objective("clm", tokenizer, {})
    assert objective.generates
    objective.prepare(model)
    assert objective.generates is generates
    prefix = make_objective("prefix_lm", tokenizer, {"max_length": 32})
    prefix.prepare(model)
    assert prefix.generates is generates


def test_examples_are_spread_and_whole(tokenizer):
    records = [PromptCompletion("the", " user" * (1 + index % 2 * 20)) for index in range(100)]
    corpus = build(tokenizer, *records, max_length=10)
    origins = [int(example.origin[2:]) for example in corpus.examples]
    assert Counter(example.completion for example in corpus.examples) == {"user": len(origins)}
    assert len(origins) >= 3
    assert max(origins) - min(origins) > 50
    for record in (Text("the user"), PromptCompletion("", "the user")):  # nothing to generate from
        assert build(tokenizer, record).examples == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_length": 1}, "max_length: got 1"), ({"on_empty": "skip"}, "on_empty: got 'skip'; one of error, drop")],
)
def test_options_are_checked(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        build(tokenizer, GOOD, **options)


def test_tokenizers_that_cannot_be_trained_with_are_refused(make_tokenizer):
    with pytest.raises(ValueError, match="tokenizer: ByT5Tokenizer gives no character offsets"):
        build(ByT5Tokenizer(), GOOD)
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="tokenizer: it has no end token"):
        build(endless, GOOD)
