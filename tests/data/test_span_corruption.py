import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import cross_entropy
from transformers import BartConfig, BartForConditionalGeneration, ByT5Tokenizer, T5Config, T5ForConditionalGeneration
from transformers import T5Tokenizer as SentencePieceT5

from fastft.data import Draw, Sample, Samples, make_objective
from fastft.data.attention import forward
from fastft.data.formats import PromptCompletion, Text
from fastft.data.masking import WeightedSpan
from fastft.data.objectives.span_corruption import Noise, even_blocks
from fastft.data.objectives.ul2 import MODES, R, S, X
from fastft.data.templates import Renderer

from .built import build

BYTES = ByT5Tokenizer()  # <extra_id_0> .. <extra_id_124> are 259 .. 383
SENTINELS = range(259, 384)
END = 1
LENGTHS = st.integers(2, 400)
SEEDS = st.integers(0, 2**32)
NOISES = st.builds(Noise, st.floats(0.02, 0.9), st.floats(1.0, 40.0))
WORDS = "the quick brown fox jumps over the lazy dog "


def t5_tokenizer(**options):
    letters = [(letter, -3.0) for letter in ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]]
    return SentencePieceT5(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], **options)


def corpus(objective, *records, learned=None, on_empty="error"):
    renderer = Renderer(objective.tokenizer)
    rendered = [(renderer.render(record, f"f:{line}"), f"f:{line}") for line, record in enumerate(records, start=1)]
    mask = learned or (lambda record: [WeightedSpan(0, len(record.text) + 1, 1.0)])
    return build(rendered, len(rendered), objective, mask, on_empty)


def span_corruption(tokenizer=BYTES, **options):
    return make_objective("span_corruption", tokenizer, options)


def restored(pair, sentinels, before=0):
    """The text that the encoder's input and the decoder's target were made of."""
    assert pair.source[-1] == pair.target[-1] == END
    spans, used = {}, []
    for token in pair.target[:-1]:
        if token in sentinels:
            used.append(token)
        else:
            spans.setdefault(used[-1], []).append(token)
    assert used == list(sentinels[: len(used)])
    assert [token for token in pair.source if token in sentinels] == used
    assert all(spans[sentinel] for sentinel in used)
    text = [spans.get(token, [token]) for token in pair.source[before:-1]]
    return [token for piece in text for token in piece], len(used), sum(map(len, spans.values()))


@given(LENGTHS, SEEDS, NOISES)
def test_the_target_puts_back_what_the_sentinels_stand_for(length, seed, noise):
    objective = span_corruption(
        max_length=2000, noise_density=noise.density, mean_noise_span_length=max(noise.span_length, 3.0)
    )
    ids = np.random.default_rng(seed).integers(3, 259, length).tolist()
    pair = objective.pair(Sample(ids, [1.0] * length), np.random.default_rng(seed))
    text, spans, hidden = restored(pair, SENTINELS)
    assert text == ids
    assert (hidden, spans) == objective.noises[0].counts(length)
    assert pair.weights == [1.0] * len(pair.target)
    assert len(pair.source) == length - hidden + spans + 1
    assert len(pair.target) == hidden + spans + 1


@given(LENGTHS, SEEDS, NOISES)
def test_noise_has_its_share_and_its_spans(length, seed, noise):
    mask = noise.mask(length, np.random.default_rng(seed))
    hidden, spans = int(mask.sum()), int((np.diff(mask.astype(int), prepend=0) == 1).sum())
    assert mask.shape == (length,)
    assert (hidden, spans) == noise.counts(length)
    assert 1 <= spans <= hidden < length
    assert abs(hidden - noise.density * length) <= 1 or hidden == length - 1
    fits = hidden / noise.span_length >= 1 and round(hidden / noise.span_length) <= length - hidden
    assert abs(spans - hidden / noise.span_length) <= 0.5 or not fits


@pytest.mark.parametrize("noise", [Noise(0.15, 3.0), Noise(0.5, 3.0), Noise(0.15, 32.0)])
def test_every_place_is_noise_now_and_then_and_spans_differ(noise):
    random = np.random.default_rng(0)
    rate = np.mean([noise.mask(40, random) for _ in range(4000)], axis=0)
    hidden, _ = noise.counts(40)
    assert abs(rate.mean() - hidden / 40) < 1e-9
    assert rate.min() > 0.2 * hidden / 40
    lengths = [
        len(run) for _ in range(500) for run in "".join("01"[int(n)] for n in noise.mask(400, random)).split("0") if run
    ]
    assert abs(np.mean(lengths) - noise.span_length) < 0.1 * noise.span_length
    assert len(set(lengths)) > 5


@settings(max_examples=60)
@given(st.integers(8, 700), st.floats(0.05, 0.85), st.floats(1.0, 20.0))
def test_blocks_are_as_long_as_max_length_and_the_sentinels_allow(max_length, density, span):
    objective = span_corruption(max_length=max_length, noise_density=density, mean_noise_span_length=span)

    def fits(length):
        hidden, spans = Noise(density, span).counts(length)
        return max(length - hidden, hidden) + spans + 1 <= max_length and spans <= len(SENTINELS)

    assert fits(objective.block_length)
    assert not fits(objective.block_length + 1)


def test_t5s_own_numbers():
    """t5.data.preprocessors.compute_input_and_target_lengths(512, 0.15, 3.0) gives blocks of 568 and targets of 114."""
    objective = span_corruption(max_length=512)
    assert objective.block_length == 568
    pair = objective.pair(Sample([5] * 568, [1.0] * 568), np.random.default_rng(0))
    assert (len(pair.source), len(pair.target)) == (512, 114)


@given(st.integers(1, 60), st.integers(3, 20))
def test_blocks_cover_a_text_and_none_has_a_single_token(length, size):
    blocks = even_blocks(length, size)
    assert [place for start, end in blocks for place in range(start, end)] == list(range(length))
    assert all(end - start <= size for start, end in blocks)
    assert length == 1 or all(end - start >= 2 for start, end in blocks)


@pytest.mark.parametrize("name", ["span_corruption", "ul2"])
def test_what_is_drawn_depends_on_seed_epoch_and_sample_alone(name):
    objective = make_objective(name, BYTES, {"max_length": 64})
    objective._start = 0
    samples = corpus(objective, *(Text(WORDS * 3) for _ in range(6))).samples
    one = objective.batch(samples, [[3]], Draw(1, 2))
    among = objective.batch(samples, [[5], [3]], Draw(1, 2), 8)
    length = one.inputs["input_ids"].shape[1]
    assert among.inputs["input_ids"][1, :length].equal(one.inputs["input_ids"][0])
    different = [objective.batch(samples, [[i]], draw) for draw in (Draw(1, 3), Draw(2, 2)) for i in (3, 4)]
    made = [batch.inputs["input_ids"].tolist() for batch in [one, *different]]
    assert all(a != b for place, a in enumerate(made) for b in made[:place])


@pytest.mark.parametrize("name", ["span_corruption", "ul2"])
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_loss_is_the_models_own(name, kind):
    torch.manual_seed(0)
    tokenizer = BYTES if kind == "bytes" else t5_tokenizer()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes)).eval()
    objective = make_objective(name, tokenizer, {"max_length": 48})
    objective.prepare(model)
    samples = corpus(objective, Text(WORDS * 4), Text("a short one")).samples
    assert len(samples) > 3
    batch = objective.batch(samples, [[index] for index in range(len(samples))], Draw(0, 0))
    (target,) = batch.targets
    nll = cross_entropy(forward(model, batch).logits.flatten(0, 1), target.labels.flatten(), reduction="sum")
    given = {key: batch.inputs[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(nll / target.count, model(**given, labels=target.labels).loss)
    assert target.total == target.count == int(batch.inputs["decoder_attention_mask"].sum())
    assert max(batch.inputs["input_ids"].shape[1], target.labels.shape[1]) <= 48


def test_sentinels_of_a_t5_tokenizer_go_down():
    tokenizer = t5_tokenizer()
    objective = make_objective("span_corruption", tokenizer, {"max_length": 30})
    pair = objective.pair(corpus(objective, Text("abcdefgh" * 3)).samples[0], np.random.default_rng(0))
    names = [token for token in tokenizer.convert_ids_to_tokens(pair.target) if token.startswith("<extra_id_")]
    assert names == [f"<extra_id_{place}>" for place in range(len(names))]
    assert tokenizer.decode(pair.target[-1:]) == "</s>"


def test_a_sentencepiece_vocabulary_may_write_sentinels_with_a_space():
    letters = [(token, -3.0) for token in ("\u2581", "a", "\u2581<extra_id_1>", "\u2581<extra_id_0>")]
    tokenizer = SentencePieceT5(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)
    objective = make_objective("span_corruption", tokenizer, {"max_length": 100})
    pair = objective.pair(Sample([4] * 20, [1.0] * 20), np.random.default_rng(0))
    assert tokenizer.convert_ids_to_tokens(pair.target[0]) == "\u2581<extra_id_0>"
    assert objective.block_length == 49  # 7 noise tokens in 2 spans; 50 would have 8 in 3


def test_weights_follow_the_tokens():
    objective = make_objective("span_corruption", t5_tokenizer(), {"max_length": 64, "noise_density": 0.5})
    text = "abcdefghijklmnopqrst"

    def learned(record):
        return [WeightedSpan(0, 6, 0.5), WeightedSpan(6, 9, 2.0)]

    samples = corpus(objective, Text(text), learned=learned).samples
    weight_of = dict(zip(samples[0].input_ids, samples[0].weights, strict=True))
    assert set(weight_of.values()) == {0.0, 0.5, 2.0}
    known = objective.tokenizer.get_vocab()
    sentinels = [known[f"<extra_id_{place}>"] for place in range(20)]
    seen = set()
    for epoch in range(50):
        pair = objective.pair(samples[0], Draw(0, epoch).random("span_corruption", 0))
        weights = iter(pair.weights)
        spans = []
        for token in pair.target[:-1]:
            weight = next(weights)
            if token in sentinels:
                spans.append((weight, []))
            else:
                assert weight == weight_of[token]
                spans[-1][1].append(weight)
        assert all(weight == max(inside) for weight, inside in spans)
        assert next(weights) == max(weight for weight, _ in spans) > 0
        seen.update(weight for weight, _ in spans)
    assert seen == {0.0, 0.5, 2.0}


@pytest.mark.parametrize("name", ["span_corruption", "ul2"])
@pytest.mark.parametrize("place", [0, 7, 19])
def test_something_is_always_learned(name, place):
    objective = make_objective(name, BYTES, {"max_length": 64})
    weights = [0.0] * 20
    weights[place] = 1.0
    for epoch in range(60):
        pair = objective.pair(Sample(list(range(5, 25)), weights), Draw(0, epoch).random(name, 0))
        assert sum(pair.weights) >= 1.0


def test_what_is_cut_and_what_has_nothing_to_learn_is_counted():
    objective = span_corruption(max_length=20)
    size = objective.block_length
    made = corpus(objective, Text("a" * (2 * size + 1)), PromptCompletion("a" * 10, "b" * 30))
    assert made.lengths == [size, size - 1, 2, size]
    assert made.stats.truncated == 1
    for record, why in ((Text(""), "no token of it is to be learned"), (Text("a"), "it is a single token")):
        with pytest.raises(ValueError, match=rf"sample 0 \(f:1, .*{why}"):
            corpus(objective, record)
    late = lambda record: [WeightedSpan(len(record.text) - 1, len(record.text), 1.0)]  # noqa: E731
    pieces = make_objective("span_corruption", t5_tokenizer(), {"max_length": 20})
    with pytest.raises(ValueError, match="max_length=20 cuts off all of its target"):
        corpus(pieces, PromptCompletion("a" * 10, "b" * 30), learned=late)
    assert corpus(objective, Text("a"), Text("abcd"), Text(""), on_empty="drop").stats.dropped == 2


def test_ul2_draws_its_denoisers_by_their_weights():
    text = list(range(5, 105))
    counts = np.zeros(3)
    objective = make_objective("ul2", BYTES, {"max_length": 128, "ul2_weights": [2, 1, 1], "ul2_mode_tokens": MODES[0]})
    modes = [BYTES(mode, add_special_tokens=False).input_ids for mode in MODES[0]]
    starts, extreme = [], set()
    for epoch in range(1200):
        pair = objective.pair(Sample(text, [1.0] * 100), Draw(0, epoch).random("ul2", 0))
        mode = modes.index(pair.source[:3])
        counts[mode] += 1
        whole, spans, hidden = restored(pair, SENTINELS, before=3)
        assert whole == text
        if mode == S:
            assert pair.source[-2] == SENTINELS[0] == pair.target[0]
            starts.append(100 - hidden)
        elif mode == R:
            assert (hidden, spans) == (15, 5)
        else:
            extreme.add((hidden, spans))
    assert abs(counts[R] - 600) < 4 * 300**0.5
    assert abs(counts[S] - counts[X]) < 4 * 450**0.5
    assert (min(starts), max(starts)) >= (1, 90)
    assert min(starts) < 10
    assert extreme == {(15, 1), (50, 17)}


def test_ul2_takes_the_mode_tokens_that_the_tokenizer_has():
    for modes in MODES:
        tokenizer = t5_tokenizer()
        plain = make_objective("ul2", tokenizer, {"max_length": 40})
        assert plain.extra == 0
        tokenizer.add_tokens(list(modes))
        objective = make_objective("ul2", tokenizer, {"max_length": 40, "ul2_weights": (0, 1, 0)})
        pair = objective.pair(Sample([5] * 10, [1.0] * 10), np.random.default_rng(0))
        assert tokenizer.convert_ids_to_tokens(pair.source[0]) == modes[S]
        assert objective.block_length == plain.block_length - 1


@pytest.mark.parametrize("max_length", [12, 40, 200])
def test_no_denoiser_makes_more_than_max_length(max_length):
    objective = make_objective("ul2", BYTES, {"max_length": max_length, "ul2_mode_tokens": ["[NLU]", "[S2S]", "[NLG]"]})
    size = objective.block_length
    for seed in range(200):
        pair = objective.pair(Sample([5] * size, [1.0] * size), np.random.default_rng(seed))
        assert max(len(pair.source), len(pair.target)) <= max_length


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("span_corruption", {"noise_density": 0.0}, "noise_density: got 0.0; a share"),
        ("span_corruption", {"noise_density": 1.0}, "noise_density: got 1.0; a share"),
        ("span_corruption", {"mean_noise_span_length": 0.5}, "mean_noise_span_length: got 0.5"),
        ("span_corruption", {"max_length": 3}, "max_length: got 3, with 125 sentinels; not even 3 tokens"),
        ("span_corruption", {"sentinel": "<s>"}, "sentinel: got '<s>'; a name with {} for its number"),
        ("span_corruption", {"sentinel": "<mask_{}>"}, "ByT5Tokenizer has no sentinel '<mask_0>'"),
        ("ul2", {"ul2_weights": (1, 1)}, r"ul2_weights: got \(1, 1\); three shares"),
        ("ul2", {"ul2_weights": (0, 0, 0)}, "ul2_weights: got"),
        ("ul2", {"ul2_weights": (1, -1, 1)}, "ul2_weights: got"),
        ("ul2", {"ul2_mode_tokens": ("[R]",)}, "ul2_mode_tokens: got"),
    ],
)
def test_options_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_objective(name, BYTES, options)


def test_tokenizers_that_cannot_be_used_are_refused(make_tokenizer):
    with pytest.raises(ValueError, match="TokenizersBackend has no sentinel '<extra_id_0>'"):
        span_corruption(make_tokenizer())
    endless = make_tokenizer()
    endless.add_tokens(["<extra_id_0>"])
    endless.eos_token = None
    with pytest.raises(ValueError, match="it has no end token"):
        span_corruption(endless)


def test_a_model_with_another_start_is_given_that():
    objective = span_corruption(max_length=20)
    objective.prepare(
        BartForConditionalGeneration(
            BartConfig(vocab_size=384, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
                       decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, decoder_start_token_id=2,
                       pad_token_id=0, eos_token_id=1, forced_eos_token_id=None)
        )
    )  # fmt: skip
    batch = objective.batch(Samples.of([Sample([5] * 9, [1.0] * 9)]), [[0]], Draw(0, 0))
    assert batch.inputs["decoder_input_ids"][0, 0] == 2
    assert batch.inputs["decoder_input_ids"][0, 1:].equal(batch.targets[0].labels[0, :-1])
