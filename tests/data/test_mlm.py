from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fastft.data import Draw, Sample, Samples, make_objective
from fastft.data.attention import forward
from fastft.data.draws import EVALUATION
from fastft.data.isolation import check_isolation
from fastft.data.masking import Rendered, Span, WeightedSpan
from fastft.data.objectives.special import special_ids

from .tiny_encoders import TEXTS, byte_level, plain_loss, tiny, wordpiece

DRAW = Draw(3, 1)
EVAL = Draw(0, EVALUATION)
KINDS = {"wordpiece": wordpiece, "byte_level": byte_level}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in KINDS.items()}


@pytest.fixture(params=KINDS)
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


@pytest.fixture(scope="module")
def bert(tokenizers):
    return tokenizers["wordpiece"]


def document(text, learned=None):
    spans = [(0, len(text) + 1, 1.0)] if learned is None else learned
    spans = tuple(WeightedSpan(*span) for span in spans)
    return Rendered(text, (Span(0, len(text) + 1),), True, True, text[:60], divisible=True, learned=spans)


def mlm(tokenizer, max_length=32, **options):
    return make_objective("mlm", tokenizer, {"max_length": max_length, **options})


def samples_of(objective, texts=TEXTS):
    return Samples.of(
        sample for made in objective.encode([document(text) for text in texts]) for sample in made.samples
    )


def masked(objective, samples, draw=DRAW):
    """Original ids, shown ids and labels of every candidate of some samples."""
    batch = objective.batch(samples, [[index] for index in range(len(samples))], draw)
    (target,) = batch.targets
    rows = zip(samples, batch.inputs["input_ids"].tolist(), target.labels.tolist(), strict=True)
    triples = [
        (token, shown[t], labels[t])
        for sample, shown, labels in rows
        for t, (token, weight) in enumerate(zip(sample.input_ids, sample.weights, strict=True))
        if weight
    ]
    return np.array(triples).T


def within_3_sigma(count, n, p):
    return abs(count - n * p) <= 3 * np.sqrt(n * p * (1 - p))


# Samples


@given(text=st.text(max_size=60), max_length=st.integers(4, 20))
def test_documents_are_cut_into_blocks_with_the_special_tokens_of_the_tokenizer(tokenizers, text, max_length):
    for tokenizer in tokenizers.values():
        (made,) = mlm(tokenizer, max_length).encode([document(text)])
        blocks = tokenizer(text, truncation=True, max_length=max_length, return_overflowing_tokens=True).input_ids
        special = set(special_ids(tokenizer).tolist())
        wanted = [ids for ids in blocks if set(ids) - special]
        assert [sample.input_ids for sample in made.samples] == wanted
        for sample in made.samples:
            assert sample.weights == [float(token not in special) for token in sample.input_ids]
        assert not made.truncated


def test_a_tokenizer_without_special_tokens_around_a_text_adds_none(make_tokenizer):
    tokenizer = make_tokenizer(mask_token="<|user|>")
    (made,) = mlm(tokenizer, 4).encode([document("the user reads the words of the model")])
    assert [token for sample in made.samples for token in sample.input_ids] == tokenizer(
        "the user reads the words of the model"
    ).input_ids


def test_other_records_are_cut_off(bert):
    text = TEXTS[0] * 3
    record = replace(document(text), divisible=False)
    objective = mlm(bert, 16)
    (made,) = objective.encode([record])
    assert [sample.input_ids for sample in made.samples] == [bert(text, truncation=True, max_length=16).input_ids]
    assert made.truncated
    late = replace(record, learned=(WeightedSpan(len(text) - 3, len(text), 1.0),))
    (made,) = objective.encode([late])
    assert (made.samples, made.reason) == ([], "max_length=16 cuts off all of its target")
    (made,) = objective.encode([document("[MASK] [SEP]")])  # special tokens alone: nothing to learn
    assert made.samples == []
    (made,) = objective.encode([replace(document("a template wrote this"), add_special_tokens=False)])
    assert made.samples[0].input_ids == bert("a template wrote this", add_special_tokens=False).input_ids


# Masks


@settings(max_examples=60)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=40),
    how=st.sampled_from(["token", "whole_word", "span"]),
    p=st.floats(0.01, 1.0),
    index=st.integers(0, 9),
)
def test_only_learned_tokens_are_predicted_and_at_least_one_is(bert, weights, how, p, index):
    objective = mlm(bert, 64, mlm_masking=how, mlm_probability=p)
    ids = bert.convert_tokens_to_ids([f"{'##' if t % 3 else ''}{'aeiou'[t % 5]}" for t in range(len(weights))])
    samples = Samples.of([Sample(ids, weights)] * 10)
    batch = objective.batch(samples, [[index]], DRAW)
    (target,) = batch.targets
    shown, labels, given_weights = batch.inputs["input_ids"][0], target.labels[0], target.weights[0]
    chosen = labels != -100
    assert chosen.sum() >= min(1, np.count_nonzero(weights))
    assert labels[chosen].tolist() == torch.tensor(ids)[chosen].tolist()
    assert given_weights.tolist() == [weight if known else 0.0 for weight, known in zip(weights, chosen, strict=True)]
    assert all(weights[t] for t in chosen.nonzero().flatten())
    assert shown[~chosen].tolist() == torch.tensor(ids)[~chosen].tolist()


@pytest.mark.parametrize("how", ["token", "whole_word", "span"])
@pytest.mark.parametrize(
    "options", [{}, {"mlm_probability": 0.4, "mask_replace_prob": 0.5, "random_replace_prob": 0.3}]
)
def test_shares_are_those_asked_for(tokenizer, how, options):
    """Whole words vary in length, so the count varies more than that of independent tokens: a word has 2 here."""
    objective = mlm(tokenizer, 512, mlm_masking=how, **options)
    samples = samples_of(objective, [" ".join(TEXTS)])
    ids, shown, labels = masked(objective, samples)
    chosen = labels != -100
    units = len(ids) / 2 if how == "whole_word" else len(ids)
    p = options.get("mlm_probability", 0.15)
    assert abs(chosen.mean() - p) < 3 * np.sqrt(p * (1 - p) / units)
    hidden = shown[chosen] == tokenizer.mask_token_id
    kept = shown[chosen] == ids[chosen]
    n = chosen.sum() / (3 if how == "span" else 1)  # of choices: one for a span
    ordinary = len(tokenizer) - len(special_ids(tokenizer))
    to_mask, to_random = options.get("mask_replace_prob", 0.8), options.get("random_replace_prob", 0.1)
    assert within_3_sigma(hidden.mean() * n, n, to_mask)
    assert within_3_sigma(kept.mean() * n, n, 1 - to_mask - to_random * (1 - 1 / ordinary))


def test_random_tokens_are_any_but_special_ones(tokenizer):
    objective = mlm(tokenizer, 512, mlm_probability=0.9, mask_replace_prob=0.0, random_replace_prob=1.0)
    shown = np.concatenate([masked(objective, samples_of(objective), Draw(0, epoch))[1] for epoch in range(3)])
    ordinary = set(range(len(tokenizer))) - set(special_ids(tokenizer).tolist())
    assert set(shown.tolist()) == ordinary


def test_whole_words_are_those_of_the_tokenizer(tokenizer):
    objective = mlm(tokenizer, 64, mlm_masking="whole_word", mlm_probability=0.3)
    text = "The unquestionable tokenization, 2026: reconfigurable (underscored)   words.\nUnbelievable!"
    encoded = tokenizer(text)
    word = np.array([-1 if number is None else number for number in encoded.word_ids(0)])
    assert len(set(word)) < len(word) - 2  # some words are of several tokens
    samples = Samples.of([Sample(encoded.input_ids, (word >= 0).astype(float).tolist())])
    for epoch in range(50):
        labels = objective.batch(samples, [[0]], Draw(0, epoch)).targets[0].labels[0].numpy()
        chosen = set(word[labels != -100])
        assert chosen
        assert (np.isin(word, list(chosen)) == (labels != -100)).all()


def test_words_of_smollm2_are_told_from_its_tokens(smollm2):
    smollm2.mask_token = "<|im_start|>"
    starts = mlm(smollm2, mlm_masking="whole_word")._words
    agreeing, total = 0, 0
    for text in TEXTS:
        encoded = smollm2(text)
        word = np.array(encoded.word_ids(0))
        wanted = np.append(True, word[1:] != word[:-1])
        agreeing += int((starts(np.array(encoded.input_ids)) == wanted).sum())
        total += len(word)
    assert agreeing / total > 0.999  # all but quotes before letters ('data) and runs of white space in several tokens


def test_spans_are_runs_of_geometric_length(bert):
    objective = mlm(bert, 512, mlm_masking="span", mask_replace_prob=1.0, random_replace_prob=0.0)
    lengths = []
    samples = samples_of(objective, [" ".join(TEXTS)])
    for epoch in range(8):
        hidden = masked(objective, samples, Draw(0, epoch))[2] != -100
        edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden, [0]])))
        lengths += (edges[1::2] - edges[::2]).tolist()
    share = np.bincount(lengths, minlength=12)[1:11] / len(lengths)
    assert max(lengths) <= 20  # of two that meet where a sample ends and the next begins
    assert abs(np.mean(lengths) - 3.0) < 0.15
    assert (np.diff(share[:8]) < 0.005).all()  # falling


# Draws


def test_masks_depend_on_seed_epoch_and_sample_alone(bert):
    objective = mlm(bert, 24)
    samples = samples_of(objective, TEXTS[:40])
    n = len(samples)

    def labels(rows, draw=DRAW, of=objective):
        batch = of.batch(samples, rows, draw)
        return {
            index: (shown[: len(samples[index].input_ids)].tolist(), row[: len(samples[index].input_ids)].tolist())
            for (index,), shown, row in zip(rows, batch.inputs["input_ids"], batch.targets[0].labels, strict=True)
        }

    together = labels([[index] for index in range(n)])
    assert together == labels([[index] for index in reversed(range(n))])
    apart = {}
    for rank in range(3):  # ranks, each with an objective of its own, in micro-batches of 2
        for start in range(rank, n, 6):
            rows = [[index] for index in (start, start + 3) if index < n]
            apart |= labels(rows, of=mlm(bert, 24))
    assert apart == together
    for other in (Draw(3, 2), Draw(4, 1), EVAL):
        assert labels([[index] for index in range(n)], other) != together
    alike = Samples.of([samples[0]] * 8)
    batch = objective.batch(alike, [[index] for index in range(8)], DRAW)
    assert len(set(map(str, batch.targets[0].labels.tolist()))) > 4  # one sample after another, not one mask for all


def test_evaluation_has_its_own_probability(bert):
    objective = mlm(bert, 512, mlm_probability=0.3, mlm_eval_probability=0.1)
    samples = samples_of(objective, [" ".join(TEXTS)])
    counts = {draw: int((masked(objective, samples, draw)[2] != -100).sum()) for draw in (DRAW, EVAL)}
    n = int(sum(map(np.count_nonzero, (sample.weights for sample in samples))))
    assert within_3_sigma(counts[DRAW], n, 0.3)
    assert within_3_sigma(counts[EVAL], n, 0.1)
    assert (masked(objective, samples, EVAL) == masked(objective, samples, EVAL)).all()


# Models


@pytest.mark.parametrize("kind", ["bert", "distilbert", "albert", "electra", "roberta", "xlm-roberta", "modernbert"])
def test_the_loss_is_that_of_the_model(tokenizers, kind):
    tokenizer = tokenizers["byte_level" if "roberta" in kind else "wordpiece"]
    model, objective = tiny(kind, tokenizer), mlm(tokenizer, 48)
    objective.prepare(model)
    samples = samples_of(objective, TEXTS[:12])
    batch = objective.batch(samples, [[index] for index in range(len(samples))], DRAW, multiple=8)
    (target,) = batch.targets
    assert target.output == "logits"
    loss = model(**batch.inputs, labels=target.labels).loss
    assert loss > 1
    torch.testing.assert_close(plain_loss(forward(model, batch), target).float(), loss)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"attention": "sdpa"}),
        ("bert", {"attention": "eager"}),
        ("modernbert", {"attention": "sdpa", "local_attention": 8}),
        ("modernbert", {"attention": "eager", "local_attention": 8}),
        ("distilbert", {}),
        ("albert", {}),
        ("roberta", {}),
        ("xlm-roberta", {}),
    ],
)
def test_packed_is_unpacked(tokenizers, kind, options):
    tokenizer = tokenizers["byte_level" if "roberta" in kind else "wordpiece"]
    model, objective = tiny(kind, tokenizer, **options).double(), mlm(tokenizer, 48)
    objective.prepare(model)
    check_isolation(model, objective)
    samples = samples_of(objective, TEXTS[:6])
    n = len(samples)
    alone = objective.batch(samples, [[index] for index in range(n)], DRAW)
    packed = objective.batch(samples, [list(range(0, n, 2)), list(range(1, n, 2))], DRAW)
    assert packed.inputs["attention_mask"].ndim == 4
    assert packed.tokens == alone.tokens
    losses = [plain_loss(forward(model, batch), batch.targets[0]) for batch in (alone, packed)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)
    unmasked = {**packed.inputs, "attention_mask": torch.ones_like(packed.inputs["input_ids"])}
    leaking = plain_loss(forward(model, replace(packed, inputs=unmasked)), packed.targets[0])
    assert abs(leaking - losses[0]) > 1e-5


@pytest.mark.parametrize("kind", ["convbert", "fnet"])
def test_models_that_mix_samples_in_a_row_are_not_packed(bert, kind):
    model, objective = tiny(kind, bert), mlm(bert, 48)
    objective.prepare(model)
    with pytest.raises(ValueError, match=r"packing: .* cannot keep samples"):
        check_isolation(model, objective)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlm_probability": 0.0}, "mlm_probability: got 0.0"),
        ({"mlm_eval_probability": 1.5}, "mlm_eval_probability: got 1.5"),
        ({"mask_replace_prob": 0.9, "random_replace_prob": 0.2}, r"got 0.9 and 0.2; .* a sum of at most 1"),
        ({"random_replace_prob": -0.1}, "neither below 0"),
        ({"mlm_masking": "ngram"}, "mlm_masking: got 'ngram'; one of token, whole_word, span"),
        ({"mlm_span_length": 0.5}, "mlm_span_length: got 0.5"),
        ({"mlm_span_length": 6}, "mlm_span_length: got 6"),
        ({"max_length": 2}, "max_length: got 2; more is wanted than the 2 special tokens"),
    ],
)
def test_options_are_checked(bert, options, message):
    with pytest.raises(ValueError, match=message):
        mlm(bert, **options)


def test_tokenizers_without_what_it_takes_are_refused(make_tokenizer, merging):
    with pytest.raises(ValueError, match=r"'mlm' needs a mask token, and the tokenizer .* has none"):
        mlm(make_tokenizer())
    merging.mask_token = "<eos>"
    with pytest.raises(ValueError, match=r"mlm_masking='whole_word': the tokenizer \(BPE\) does not mark where words"):
        mlm(merging, mlm_masking="whole_word")


def test_models_that_cannot_be_trained_are_refused(tokenizers, bert):
    model, larger = tiny("bert", bert), wordpiece()
    larger.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="its embedding has 600 rows and the tokenizer's largest id is 600"):
        mlm(larger).prepare(model)
    with pytest.raises(ValueError, match="BartForConditionalGeneration is an encoder-decoder"):
        mlm(bert).prepare(tiny("bart", bert))


def test_a_model_may_have_fewer_positions_than_max_length_where_samples_are_shorter(tokenizers):
    tokenizer = tokenizers["byte_level"]
    model, objective = tiny("roberta", tokenizer), mlm(tokenizer, 1024)
    objective.prepare(model)
    samples = samples_of(objective, sorted(TEXTS, key=len)[:6])
    assert objective.longest(samples) <= 130
    batch = objective.batch(samples, [[0, 1, 2, 3, 4, 5]], DRAW)
    assert int(batch.inputs["position_ids"].min()) == 2  # of a table of 132, the first two of which are never used


@pytest.mark.parametrize(
    ("kind", "name"), [("bert", "mlm"), ("albert", "mlm"), ("fnet", "mlm"), ("bert", "clm"), ("albert", "clm")]
)
def test_a_model_with_two_heads_learns_tokens_alone_as_well(bert, kind, name):
    model = tiny(kind, bert, pretraining=True)
    objective = make_objective(name, bert, {"max_length": 48})
    objective.prepare(model)
    samples = samples_of(objective, TEXTS[:6])
    batch = objective.batch(samples, [[index] for index in range(4)], DRAW)
    (target,) = batch.targets
    assert target.output == "prediction_logits"
    logits = forward(model, batch).prediction_logits
    assert target.labels.shape == logits.shape[:-1]
    assert plain_loss(forward(model, batch), target) > 1
    with torch.device("meta"):  # told without computing
        outlined = make_objective(name, bert, {"max_length": 48})
        outlined.outline(type(model)(model.config))
    assert outlined.batch(samples, [[0]], DRAW).targets[0].output == "prediction_logits"
