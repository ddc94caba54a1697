import math
import pickle
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.nn.functional import cross_entropy
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    ByT5Tokenizer,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from fastft.data import Draw, Samples, make_objective
from fastft.data.attention import forward
from fastft.data.formats import Conversation, Instruction, PromptCompletion, Text
from fastft.data.masking import Rendered, Span, WeightedSpan
from fastft.data.objectives.encoder_decoder import decoder_start
from fastft.data.parts import Part, encode_parts
from fastft.data.templates import Renderer

from .built import build
from .chat_templates import CHATML

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = [("the cat", "a dog"), ("read words", "the model writes an answer"), ("a", "b")]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SMALL = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SMALL |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}


def pieces(*control):
    return [(token, 0.0) for token in control] + [(letter, -3.0) for letter in ["\u2581", *LETTERS]]


def t5(tokenizer):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes))


def bert2bert(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
    decoder = BertConfig(vocab_size=len(tokenizer), is_decoder=True, add_cross_attention=True, **sizes)
    model = EncoderDecoderModel(encoder=encoder, decoder=BertLMHeadModel(decoder))
    model.config.decoder_start_token_id, model.config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    return model


def like_bart(model_class, config_class):
    def make(tokenizer):
        start, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        ids = {"decoder_start_token_id": start, "pad_token_id": pad, "eos_token_id": start, "bos_token_id": 0}
        return model_class(config_class(vocab_size=len(tokenizer), forced_eos_token_id=None, **ids, **SMALL))

    return make


MODELS = {
    "t5": (t5, "t5"),
    "byt5": (t5, "byt5"),
    "bart": (like_bart(BartForConditionalGeneration, BartConfig), "bart"),
    "marian": (like_bart(MarianMTModel, MarianConfig), "ending"),
    "mbart": (like_bart(MBartForConditionalGeneration, MBartConfig), "mbart"),
    "bert2bert": (bert2bert, "bart"),
}


@pytest.fixture(scope="session")
def tokenizers(make_tokenizer):
    end = {"pad_token": "<|user|>"}
    return {
        "t5": T5Tokenizer(vocab=pieces("<pad>", "</s>", "<unk>")),
        "byt5": ByT5Tokenizer(),
        "bart": make_tokenizer(adds="<|bos|> $A <|endoftext|>", **end),
        "ending": make_tokenizer(adds="$A <|endoftext|>", **end),
        "mbart": MBartTokenizer(
            vocab=pieces("<s>", "<pad>", "</s>", "<unk>"), src_lang="en_XX", tgt_lang="de_DE", mask_token="<mask>"
        ),
    }


def corpus(tokenizer, *records, on_empty="error", learned=None, **options):
    renderer = Renderer(tokenizer)
    rendered = [(renderer.render(record, f"f:{line}"), f"f:{line}") for line, record in enumerate(records, start=1)]
    objective = make_objective("seq2seq", tokenizer, options)
    mask = learned or (lambda record: [WeightedSpan(start, end, 1.0) for start, end in record.targets])
    return objective, build(rendered, len(rendered), objective, mask, on_empty)


def pair(tokenizer, prompt, completion, **options):
    (sample,) = corpus(tokenizer, PromptCompletion(prompt, completion), **options)[1].samples
    return sample


def mean_loss(model, batch):
    logits = forward(model, batch).logits
    (target,) = batch.targets
    nll = cross_entropy(logits.flatten(0, 1), target.labels.flatten(), reduction="none")
    return (nll * target.weights.flatten()).sum() / target.weights.sum()


@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")  # what EncoderDecoderModel says to any labels
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("multiple", [1, 8])
def test_the_loss_and_the_decoder_inputs_are_the_models_own(tokenizers, name, multiple):
    torch.manual_seed(0)
    make, kind = MODELS[name]
    tokenizer = tokenizers[kind]
    model = make(tokenizer).eval()
    objective, made = corpus(tokenizer, *(PromptCompletion(*words) for words in PAIRS))
    objective.prepare(model)
    batch = objective.batch(made.samples, [[0], [1], [2]], Draw(0, 0), multiple)
    given = tokenizer([source for source, _ in PAIRS], padding=True, return_tensors="pt")
    wanted = tokenizer(text_target=[target for _, target in PAIRS], padding=True, return_tensors="pt")
    labels = wanted.input_ids.masked_fill(wanted.attention_mask == 0, -100)
    theirs = model(input_ids=given.input_ids, attention_mask=given.attention_mask, labels=labels)
    torch.testing.assert_close(mean_loss(model, batch), theirs.loss)
    length = labels.shape[1]
    assert batch.targets[0].labels[:, :length].equal(labels)
    assert batch.targets[0].labels.shape[1] % multiple == 0
    inputs = model.prepare_decoder_input_ids_from_labels(labels=labels)
    real = batch.inputs["decoder_attention_mask"].bool()
    assert batch.inputs["decoder_input_ids"][real].equal(inputs[real[:, :length]])
    assert real.sum(1).tolist() == wanted.attention_mask.sum(1).tolist()
    assert batch.tokens == int(given.attention_mask.sum() + wanted.attention_mask.sum())


def test_mbarts_language_code_goes_to_the_front(tokenizers):
    tokenizer = tokenizers["mbart"]
    sample = pair(tokenizer, "the cat", "a dog")
    source, target = sample.input_ids[: sample.boundary], sample.input_ids[sample.boundary :]
    assert tokenizer.convert_ids_to_tokens(source[-2:]) == ["</s>", "en_XX"]
    assert tokenizer.convert_ids_to_tokens(target[-2:]) == ["</s>", "de_DE"]
    objective = make_objective("seq2seq", tokenizer, {})
    objective.prepare(MODELS["mbart"][0](tokenizer))
    # cut, the target still begins with its language, and its end is not learned
    cut = pair(tokenizer, "the cat", "a dog", max_target_length=4)
    batch = objective.batch(Samples.of([cut]), [[0]], Draw(0, 0))
    text = target[:2]
    assert batch.inputs["decoder_input_ids"].tolist() == [[target[-1], *text, target[-2]]]
    assert batch.targets[0].labels.tolist() == [[*text, -100, -100]]


@given(prompt=WORDS.filter(str.strip), completion=WORDS.filter(str.strip), fast=st.booleans())
def test_source_and_target_are_tokenised_each_on_its_own(tokenizers, prompt, completion, fast):
    tokenizer = tokenizers["bart" if fast else "byt5"]
    made = pair(tokenizer, prompt, completion, max_length=1000)
    source, target = tokenizer(prompt).input_ids, tokenizer(text_target=completion).input_ids
    assert (made.input_ids, made.boundary) == (source + target, len(source))
    assert made.weights == [0.0] * len(source) + [1.0] * len(target)


def test_tokens_that_are_not_learned_are_still_given_to_the_decoder(tokenizers):
    tokenizer = tokenizers["bart"]
    text, at = "the user reads the words", 8
    objective, made = corpus(
        tokenizer,
        PromptCompletion("the user", " reads the words"),
        learned=lambda record: [WeightedSpan(0, at + 6, 2.0), WeightedSpan(at + 11, len(text) + 1, 0.5)],
    )
    (sample,) = made.samples
    whole = pair(tokenizer, "the user", " reads the words")
    assert sample.input_ids == whole.input_ids
    target = sample.input_ids[sample.boundary :]
    objective.prepare(MODELS["bart"][0](tokenizer))
    batch = objective.batch(made.samples, [[0]], Draw(0, 0))
    assert batch.inputs["decoder_input_ids"].tolist() == [[tokenizer.eos_token_id, *target[:-1]]]
    labels, weights = batch.targets[0].labels[0].tolist(), batch.targets[0].weights[0].tolist()
    written = {weight: "".join(tokenizer.convert_ids_to_tokens(t for t, w in zip(target, weights, strict=True) if w == weight)) for weight in (2.0, 0.0, 0.5)}  # fmt: skip # noqa: E501
    assert written == {2.0: "<|bos|>Ġreads", 0.0: "Ġthe", 0.5: "Ġwords<|endoftext|>"}
    assert [label == -100 for label in labels] == [weight == 0 for weight in weights]


def test_without_offsets_a_target_is_learned_as_a_whole(tokenizers):
    tokenizer = tokenizers["byt5"]
    half = pair(tokenizer, "ab", "cd", learned=lambda record: [WeightedSpan(0, 9, 0.5)])
    assert half.weights == [0.0] * 3 + [0.5] * 3
    with pytest.raises(ValueError, match=r"ByT5Tokenizer gives no character offsets.* fast tokenizer"):
        pair(tokenizer, "ab", "cd", learned=lambda record: [WeightedSpan(2, 3, 1.0)])


def test_what_is_too_long_is_cut_and_counted(tokenizers):
    tokenizer = tokenizers["byt5"]
    _, made = corpus(tokenizer, PromptCompletion("abcdef", "uvw"), PromptCompletion("ab", "uvwxyz"), max_length=5)
    assert made.stats.truncated == 2
    first, second = ([token - 3 + 1 - ord("a") for token in sample.input_ids] for sample in made.samples)
    end = 1 - 3 + 1 - ord("a")
    a, u = 1, 21
    assert first == [a, a + 1, a + 2, a + 3, end, u, u + 1, u + 2, end]
    assert second == [a, a + 1, end, u, u + 1, u + 2, u + 3, end]
    assert made.samples[0].weights == [0.0] * 5 + [1.0] * 4
    assert made.samples[1].weights == [0.0] * 3 + [1.0] * 4 + [0.0]  # the end is not where it was cut
    roomy = corpus(tokenizer, PromptCompletion("ab", "uvwxyz"), max_length=5, max_target_length=7)[1]
    assert (roomy.stats.truncated, roomy.samples[0].weights[-1]) == (0, 1.0)


def test_what_is_no_pair_is_named_and_dropped_only_if_allowed(tokenizers, make_tokenizer):
    tokenizer = tokenizers["bart"]
    turns = [{"role": role, "content": f"the {role}"} for role in ("user", "assistant")]
    chat = make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")
    late = {"learned": lambda record: [WeightedSpan(len(record.text) - 1, len(record.text), 1.0)]}
    cases = [
        (tokenizer, Text("the user"), {}, "plain text, and seq2seq wants a source and a target"),
        (tokenizer, PromptCompletion("the", " "), {}, "no token of it is to be learned"),
        (tokenizer, PromptCompletion(" \n", "the"), {}, "its source is empty"),
        (chat, Conversation(turns * 2), {}, "several targets, and seq2seq learns one"),
        (tokenizer, PromptCompletion("a", "the words"), {"max_target_length": 3, **late}, "max_target_length=3 cuts"),
        (tokenizer, PromptCompletion("a", "the words"), {"max_target_length": 1}, "max_target_length=1 cuts"),
        (tokenizer, PromptCompletion("the words", "a"), {"max_length": 2}, "max_length=2 cuts off all of its source"),
        (tokenizer, PromptCompletion("the", "words"), {"learned": lambda r: [WeightedSpan(0, 3, 1.0)]}, "no token of"),
    ]
    for given_tokenizer, record, options, why in cases:
        with pytest.raises(ValueError, match=rf"sample 0 \(f:1, .*{why}"):
            corpus(given_tokenizer, record, **options)
    _, made = corpus(tokenizer, Text("a"), PromptCompletion("the", "words"), Text("b"), on_empty="drop")
    assert (made.stats.samples, made.stats.dropped, len(made.stats.drop_reasons)) == (1, 2, 1)


def test_a_conversation_of_one_turn_and_an_instruction_are_pairs(tokenizers, make_tokenizer):
    chat = make_tokenizer(adds="$A <|endoftext|>", chat_template=CHATML, eos_token="<|im_end|>")
    turns = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "words"}]
    (sample,) = corpus(chat, Conversation(turns))[1].samples
    assert chat.decode(sample.input_ids[sample.boundary :]) == "words<|im_end|>"
    assert chat.decode(sample.input_ids[: sample.boundary]).endswith("<|im_start|>assistant\n")
    (sample,) = corpus(tokenizers["byt5"], Instruction("do", "", "ab"))[1].samples
    assert sample.input_ids[sample.boundary :] == [100, 101, 1]


@pytest.mark.parametrize("adds", ["", "<|bos|> $A", "$A <|endoftext|>"])
@pytest.mark.parametrize("written", ["", "<|endoftext|>"])
def test_a_target_ends_once_whoever_writes_it(make_tokenizer, adds, written):
    tokenizer = make_tokenizer(adds=adds)
    sample = pair(tokenizer, "the", "words" + written)
    target = tokenizer.decode(sample.input_ids[sample.boundary :])
    assert target == ("<|bos|>" if "bos" in adds else "") + "words<|endoftext|>"
    assert sample.weights[-1] == 1.0


def test_a_tokenizer_without_an_end_token_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    record = Rendered("ab", (Span(1, 3),), True, True, "", learned=(WeightedSpan(1, 3, 1.0),))
    with pytest.raises(ValueError, match="no end token"):
        list(encode_parts([Part(record, 1, 3)], tokenizer, target=True))


def test_examples_are_sources(tokenizers):
    tokenizer = tokenizers["bart"]
    (example,) = corpus(tokenizer, PromptCompletion("the user", "reads words"))[1].examples
    assert (example.prompt, example.completion, example.origin) == ("the user", "reads words", "f:1")
    assert example.prompt_ids == tokenizer("the user").input_ids
    assert corpus(tokenizer, PromptCompletion("the user reads", "words"), max_length=3)[1].examples == []


def test_options_and_models_that_cannot_be_used_are_refused(tokenizers):
    tokenizer = tokenizers["byt5"]
    with pytest.raises(ValueError, match="max_target_length: got 0"):
        make_objective("seq2seq", tokenizer, {"max_target_length": 0})
    objective, made = corpus(tokenizer, PromptCompletion("ab", "cd"))
    with pytest.raises(ValueError, match=r"seq2seq has to be prepared .* call prepare\(model\)"):
        objective.batch(made.samples, [[0]], Draw(0, 0))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is no encoder-decoder"):
        objective.prepare(GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)))
    endless = t5(tokenizer)
    endless.config.decoder_start_token_id = None
    with pytest.raises(
        ValueError, match=r"T5ForConditionalGeneration makes no decoder inputs.*set decoder_start_token_id"
    ):
        objective.prepare(endless)
    odd = t5(tokenizer)
    odd.prepare_decoder_input_ids_from_labels = lambda labels: labels
    with pytest.raises(ValueError, match=r"makes of the target .* one step on is wanted"):
        objective.prepare(odd)
    objective.prepare(t5(tokenizer))
    with pytest.raises(ValueError, match="samples: got none"):
        objective.batch(made.samples, [], Draw(0, 0))


def test_a_model_without_a_rule_of_its_own_starts_with_its_token(tokenizers):
    model = like_bart(BlenderbotForConditionalGeneration, BlenderbotConfig)(tokenizers["bart"])
    assert not hasattr(model, "prepare_decoder_input_ids_from_labels")
    assert decoder_start(model) == tokenizers["bart"].eos_token_id
    with pytest.raises(ValueError, match="no decoder_start_token_id; set it"):
        decoder_start(SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True)))


def test_a_prepared_objective_goes_to_another_process_without_its_model(tokenizers):
    objective, made = corpus(tokenizers["byt5"], PromptCompletion("ab", "cd"))
    objective.prepare(t5(tokenizers["byt5"]))
    pickled = pickle.dumps(objective)
    assert len(pickled) < 100_000
    batches = [each.batch(made.samples, [[0]], Draw(0, 0)) for each in (objective, pickle.loads(pickled))]
    assert all(value.equal(batches[1].inputs[name]) for name, value in batches[0].inputs.items())


def test_a_small_byte_level_t5_learns_pairs(tokenizers):
    torch.manual_seed(0)
    tokenizer = tokenizers["byt5"]
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=0,
                 dropout_rate=0.0)
    )  # fmt: skip
    objective, made = corpus(tokenizer, *(PromptCompletion(letter * 3, letter * 2) for letter in LETTERS[:8]))
    objective.prepare(model)
    batch = objective.batch(made.samples, [[i] for i in range(8)], Draw(0, 0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = mean_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1])
    assert losses[-1] < 0.5 * losses[0]
