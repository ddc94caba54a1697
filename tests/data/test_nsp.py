from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tokenizers import processors

from fastft.data import Draw, Sample, Samples, make_objective
from fastft.data.attention import forward
from fastft.data.draws import EVALUATION
from fastft.data.masking import policy
from fastft.data.objectives.sentences import other_document, segment_pairs, sentence_ends, sentences
from fastft.data.objectives.special import special_ids

from .built import build
from .test_mlm import document
from .tiny_encoders import TEXTS, byte_level, plain_loss, tiny, wordpiece

DRAW = Draw(5, 0)
PARTS = [" ".join(TEXTS[start : start + 4]) for start in range(0, 400, 4)]


@pytest.fixture(scope="module")
def bert():
    return wordpiece()


@pytest.fixture(scope="module")
def byte_pairs():
    return byte_level(300)


@pytest.fixture(scope="module")
def few(bert):
    """Twelve samples of as many documents."""
    samples = corpus(make("nsp", bert)).samples
    return Samples.of(next(s for s in samples if s.document == number) for number in range(12))


def make(name, tokenizer, max_length=48, **options):
    return make_objective(name, tokenizer, {"max_length": max_length, **options})


def corpus(objective, texts=PARTS, on_empty="error"):
    records = [(document(text), f"f:{line}") for line, text in enumerate(texts, 1)]
    return build(records, len(records), objective, policy("none"), on_empty)


def pairs(objective, samples, draw=DRAW, unmasked=True):
    """A, B and the label of each sample, taken apart from a batch by its token types and special tokens."""
    batch = objective.batch(samples, [[index] for index in range(len(samples))], draw)
    tokens, relation = batch.targets
    ids, types = batch.inputs["input_ids"].clone(), batch.inputs["token_type_ids"]
    if unmasked:
        ids = torch.where(tokens.labels == -100, ids, tokens.labels)
    found = []
    for row, kind, mask, label in zip(
        ids.tolist(), types.tolist(), batch.inputs["attention_mask"], relation.labels.tolist(), strict=True
    ):
        n, first = int(mask.sum()), kind.index(1)
        cls, sep = objective.tokenizer.cls_token_id, objective.tokenizer.sep_token_id
        assert (row[0], row[first - 1], row[n - 1]) == (cls, sep, sep)
        assert kind[:n] == [0] * first + [1] * (n - first)
        found.append((row[1 : first - 1], row[first : n - 1], label))
    return found


def segments(sample):
    return sample.input_ids[: sample.boundary], sample.input_ids[sample.boundary :]


# Sentences


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ('He said "Go!" Then left.', ['He said "Go!"', " Then left."]),
        ("See e.g. this. And 3.14 of it", ["See e.g. this.", " And 3.14 of it"]),
        ("Title\n\nA line that\ngoes on.\n\n\nEnd", ["Title\n", "\nA line that\ngoes on.", "\n\n\nEnd"]),
        ("- one\n- two\n", ["- one\n", "- two\n"]),
        ("你好。再见\uff01", ["你好。", "再见\uff01"]),
        ("Wait... What?!  ", ["Wait...", " What?!  "]),
        ("no end", ["no end"]),
        ("", [""]),
        (" \n", [" \n"]),
    ],
)
def test_where_sentences_end(text, wanted):
    ends = sentence_ends(text)
    assert [text[start:end] for start, end in zip([0, *ends], ends, strict=False)] == wanted


@given(st.text(st.sampled_from("ab .!?\n\"'。A\u2026"), max_size=60))
def test_sentences_cover_the_text_and_none_is_blank(text):
    ends = sentence_ends(text)
    assert ends == sorted(set(ends)) or not text
    assert ends[-1] == len(text)
    if text.strip():
        assert all(text[start:end].strip() for start, end in zip([0, *ends], ends, strict=False))


def test_a_long_run_of_full_stops_takes_no_time():
    assert sentence_ends("." * 200_000 + "a" + "\n" * 200_000 + "a") == [200_002, 400_002]


@given(text=st.text(st.sampled_from("ab .!?\né"), max_size=80), longest=st.integers(1, 12))
def test_sentences_and_segments_are_runs_of_tokens(byte_pairs, text, longest):
    offsets = byte_pairs(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    runs = sentences(text, offsets, longest)
    assert [place for start, end in runs for place in range(start, end)] == list(range(len(offsets)))
    assert all(0 < end - start <= longest for start, end in runs)
    found = list(segment_pairs(runs, longest))
    assert bool(found) == (len(runs) > 1)
    edges = {start for start, _ in runs} | {len(offsets)}
    for a, b in found:
        assert a[1] == b[0]
        assert {a[0], a[1], b[1]} <= edges
        assert 0 < a[1] - a[0] <= longest
        assert 0 < b[1] - b[0] <= longest
    if found:
        assert {place for a, b in found for place in range(a[0], b[1])} == set(range(len(offsets)))


# Samples


def test_samples_fill_the_length_and_stay_in_their_document(bert):
    objective = make("nsp", bert)
    made = corpus(objective)
    room = (48 - 3) // 2
    for sample in made.samples:
        a, b = segments(sample)
        assert 0 < len(a) <= room
        assert 0 < len(b) <= room
    assert np.mean([len(sample.input_ids) for sample in made.samples]) > 0.6 * 2 * room
    for number, text in enumerate(PARTS):
        ids = bert(text, add_special_tokens=False).input_ids
        words = "".join(f" {token}" for token in ids)
        own = [sample.input_ids for sample in made.samples if sample.document == number]
        assert own
        assert all("".join(f" {token}" for token in sample) in words for sample in own)
        assert set(ids) == {token for sample in own for token in sample}


def test_what_makes_no_pair_is_counted_by_reason(bert):
    texts = ["One sentence", "Two. Sentences.", "[MASK] [SEP]", "Again one"]
    made = corpus(make("sop", bert), texts, on_empty="drop")
    assert len(made.samples) == 1
    assert made.stats.drop_reasons["it has fewer than two sentences"] == 2
    assert made.stats.dropped == 3
    with pytest.raises(ValueError, match=r"sample 0 \(f:1, 'One sentence'\) .*: it has fewer than two sentences"):
        corpus(make("nsp", bert), texts)
    (prompt,) = make("nsp", bert).encode([replace(document("A prompt. A completion."), divisible=False)])
    assert (prompt.samples, prompt.reason) == (
        [],
        "sentences are taken from plain text, and this record is a prompt or a conversation",
    )


# Pairs


def test_next_sentences_follow_or_are_of_another_document(bert):
    objective = make("nsp", bert)
    samples = corpus(objective).samples
    of_document = {}
    for sample in samples:
        of_document.setdefault(tuple(segments(sample)[1]), set()).add(sample.document)
    labels = []
    for epoch in range(4):
        for sample, (a, b, label) in zip(samples, pairs(objective, samples, Draw(5, epoch)), strict=True):
            own_a, own_b = segments(sample)
            assert a == own_a
            if label:
                assert of_document[tuple(b)] - {sample.document}
            else:
                assert b == own_b
            labels.append(label)
    n = len(labels)
    assert abs(sum(labels) - n / 2) < 3 * np.sqrt(n) / 2
    for p in (0.0, 1.0):
        found = pairs(make("nsp", bert, nsp_probability=p), samples)
        assert {label for *_, label in found} == {int(p)}


def test_sentence_order_is_swapped_or_not(bert):
    objective = make("sop", bert)
    samples = corpus(objective).samples
    labels = []
    for epoch in range(4):
        for sample, (a, b, label) in zip(samples, pairs(objective, samples, Draw(5, epoch)), strict=True):
            assert (a, b) == (segments(sample)[::-1] if label else segments(sample))
            labels.append(label)
    assert abs(sum(labels) - len(labels) / 2) < 3 * np.sqrt(len(labels)) / 2


@given(
    documents=st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda given: len(set(given)) > 1),
    epoch=st.integers(0, 3),
)
def test_the_other_document_is_another(documents, epoch):
    array = np.array(documents, "<i4")
    for index in range(len(documents)):
        other = other_document(array, index, Draw(0, epoch).random("nsp", index))
        assert documents[other] != documents[index]


def test_other_documents_are_equally_probable_however_rare():
    rare = np.array([0] * 5000 + [1, 2], "<i4")
    rng = np.random.default_rng(0)
    found = Counter(other_document(rare, 7, rng) for _ in range(600))
    assert set(found) == {5000, 5001}
    assert abs(found[5000] - 300) < 3 * np.sqrt(150)


def test_a_corpus_of_one_document_is_refused(bert):
    objective = make("nsp", bert)
    samples = corpus(objective, [" ".join(TEXTS[:20])]).samples
    assert len(samples) > 3
    with pytest.raises(ValueError, match="'nsp' takes random sentences from other documents"):
        objective.batch(samples, [[0]], DRAW)
    make("sop", bert).batch(samples, [[0]], DRAW)


@settings(max_examples=15)
@given(order=st.permutations(range(12)), size=st.integers(1, 12), name=st.sampled_from(["nsp", "sop"]))
def test_pairs_depend_on_seed_epoch_and_sample_alone(bert, few, name, order, size):
    objective = make(name, bert)

    def rows(objective, indices, draw):
        batch = objective.batch(few, [[index] for index in indices], draw)
        columns = [batch.inputs["input_ids"], batch.inputs["token_type_ids"], batch.targets[0].labels]
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        return {
            index: ([column[b, :n].tolist() for column in columns], int(batch.targets[1].labels[b]))
            for b, (index, n) in enumerate(zip(indices, lengths, strict=True))
        }

    together = rows(objective, range(12), DRAW)
    apart = {}
    for start in range(0, 12, size):
        apart |= rows(make(name, bert), order[start : start + size], DRAW)
    assert apart == together
    fixed = Draw(0, EVALUATION)
    assert rows(objective, range(12), fixed) == rows(objective, range(12), fixed)
    assert len({str(rows(objective, range(12), draw)) for draw in (DRAW, Draw(5, 1), Draw(6, 0), fixed)}) == 4


def test_masks_are_those_of_masked_language_modelling(bert):
    options = {"mlm_probability": 0.3, "mask_replace_prob": 1.0, "random_replace_prob": 0.0}
    objective = make("nsp", bert, nsp_probability=0.0, **options)
    samples = corpus(objective).samples
    batch = objective.batch(samples, [[index] for index in range(len(samples))], DRAW)
    target = batch.targets[0]
    chosen = target.labels != -100
    special = torch.isin(torch.where(chosen, target.labels, batch.inputs["input_ids"]), special_tensor(bert))
    candidates = (batch.inputs["attention_mask"] == 1) & ~special
    assert chosen[candidates].sum() == chosen.sum()
    assert chosen.any(1).all()
    n = int(candidates.sum())
    assert abs(int(chosen.sum()) - 0.3 * n) < 3 * np.sqrt(n * 0.3 * 0.7)
    assert (batch.inputs["input_ids"][chosen] == bert.mask_token_id).all()
    # the same sample with its special tokens, as masked language modelling has it
    frame = objective._frame
    whole = [
        Sample(frame.ids(*segments(s)), frame.weights([1.0] * s.boundary, [1.0] * len(segments(s)[1]))) for s in samples
    ]
    alone = make("mlm", bert, **options).batch(Samples.of(whole), [[i] for i in range(len(whole))], DRAW)
    assert (alone.targets[0].labels == target.labels).all()


def special_tensor(tokenizer):
    return torch.from_numpy(special_ids(tokenizer))


# Models


@pytest.mark.parametrize("name", ["nsp", "sop"])
@pytest.mark.parametrize("kind", ["bert", "albert", "megatron-bert", "mobilebert", "fnet", "ernie", "big_bird"])
def test_the_sum_of_the_means_is_the_loss_of_the_model(bert, kind, name):
    model, objective = tiny(kind, bert, pretraining=True), make(name, bert, 64)
    objective.prepare(model)
    samples = corpus(objective).samples
    batch = objective.batch(samples, [[index] for index in range(8)], DRAW, multiple=8)
    tokens, relation = batch.targets
    assert len(set(relation.labels.tolist())) == 2
    of_relation = "sentence_order_label" if kind == "albert" else "next_sentence_label"
    assert relation.output == ("sop_logits" if kind == "albert" else "seq_relationship_logits")
    inputs = dict(batch.inputs)
    if kind == "fnet":  # mixes all positions, padding too: it knows no mask
        del inputs["attention_mask"]
    loss = model(**inputs, labels=tokens.labels, **{of_relation: relation.labels}).loss
    outputs = forward(model, batch)
    ours = sum(plain_loss(outputs, target) for target in batch.targets)
    torch.testing.assert_close(ours.float(), loss, rtol=1e-5, atol=1e-5)
    assert plain_loss(outputs, relation) > 0.01


@pytest.mark.parametrize("kind", ["electra", "distilbert"])
def test_models_without_both_heads_are_refused(bert, kind):
    with pytest.raises(ValueError, match="has no head for masked tokens and the relation of two segments"):
        make("nsp", bert).prepare(tiny(kind, bert, pretraining=True))


@given(sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=2, max_size=9))
def test_the_longest_row_is_of_the_longest_segments_which_may_meet(bert, sizes):
    objective = make("nsp", bert, 128, nsp_probability=1.0)
    samples = Samples.of(Sample([9] * (a + b), [1.0] * (a + b), a, n) for n, (a, b) in enumerate(sizes))
    bound = objective.longest(samples)
    assert bound == max(a for a, _ in sizes) + max(b for _, b in sizes) + 3
    for epoch in range(3):
        batch = objective.batch(samples, [[index] for index in range(len(sizes))], Draw(0, epoch))
        assert batch.inputs["input_ids"].shape[1] <= bound


def test_max_length_may_exceed_the_positions_of_a_model(bert):
    make("nsp", bert, 1024).prepare(tiny("bert", bert, pretraining=True))


def test_what_cannot_be_is_refused(bert, few, tokenizer):
    with pytest.raises(ValueError, match="nsp_probability: got 2"):
        make("nsp", bert, nsp_probability=2)
    with pytest.raises(ValueError, match="max_length: got 4; at least 5"):
        make("sop", bert, 4)
    with pytest.raises(ValueError, match="'sop' needs a mask token"):
        make("sop", tokenizer)
    with pytest.raises(ValueError, match="packing: 'nsp' has one label for each row"):
        make("nsp", bert).batch(few, [[0, 1]], DRAW)
    joined = wordpiece()
    joined.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(ValueError, match="'nsp' needs a separator"):
        make("nsp", joined)


def test_the_loss_of_masked_tokens_can_weigh_less(bert):
    whole, less = (make("nsp", bert, **options) for options in ({}, {"mlm_weight": 0.25}))
    samples = corpus(whole).samples
    rows = [[index] for index in range(4)]
    (tokens, label), (same, own) = (each.batch(samples, rows, DRAW).targets for each in (whole, less))
    assert (tokens.scale, label.scale, same.scale, own.scale) == (1.0, 1.0, 0.25, 1.0)
    assert torch.equal(tokens.labels, same.labels)
    with pytest.raises(ValueError, match="mlm_weight: got 0"):
        make("nsp", bert, mlm_weight=0)
