from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from transformers import GPT2Config, GPT2LMHeadModel

from fastft.data.batch import IGNORE_INDEX, lay_out, shifted
from fastft.data.masking import (
    Mask,
    Rendered,
    Span,
    Turn,
    WeightedSpan,
    kept_strings,
    policy,
    token_weights,
)
from fastft.losses import cross_entropy

from .closings import closing_tokens

RENDERED = Rendered("abc def", (Span(4, 8),), closed=True, add_special_tokens=True, opening="")
CUTS = st.lists(st.integers(0, 30), min_size=2, max_size=12).map(sorted)
SPANS = st.lists(
    st.tuples(st.integers(0, 31), st.integers(0, 31), st.sampled_from([0.25, 0.5, 1.0, 2.0])), max_size=4
).map(lambda found: [WeightedSpan(min(a, b), max(a, b), weight) for a, b, weight in found])

CHAT = "U: q1. A: a1. U: q2. A: a2."
TURNS = {"user": [(3, 6), (17, 20)], "assistant": [(10, 13), (24, 27)]}  # "q1.", "q2.", "a1.", "a2."; the stop closes


def chat(*roles, weights=None, **options):
    """CHAT with the turns of these roles as targets, each of which is closed by its full stop."""
    turns = sorted((start, end, role) for role in roles for start, end in TURNS[role])
    numbered = {3: 0, 10: 1, 17: 2, 24: 3}
    whose = tuple(Turn(role, end - 1, (weights or {}).get(start), numbered[start]) for start, end, role in turns)
    spans = tuple(Span(start, end) for start, end, _ in turns)
    return Rendered(CHAT, spans, closed=False, add_special_tokens=False, opening="", turns=whose, **options)


def learned(mask, rendered):
    """The learned strings and their weights."""
    return [(rendered.text[start:end], weight) for start, end, weight in mask(rendered)]


def characters(mask, rendered):
    """Weight of each character of the text, and of the one that stands for an end token."""
    weights = np.zeros(len(rendered.text) + 1)
    for start, end, weight in mask(rendered):
        weights[start:end] = weight
    return weights


@given(CUTS, SPANS)
def test_a_token_has_the_largest_weight_among_the_spans_of_its_characters(cuts, spans):
    offsets = list(pairwise(cuts))
    for (start, end), weight in zip(offsets, token_weights(offsets, spans), strict=True):
        characters = range(start, end) if start < end else [start - 1]
        on = [span.weight for span in spans if any(span.start <= place < span.end for place in characters)]
        assert weight == max(on, default=0.0)


def test_a_token_that_straddles_the_seam_is_learned():
    assert token_weights([(0, 3), (3, 5), (5, 7)], [WeightedSpan(4, 7, 1.0)]) == [0.0, 1.0, 1.0]
    assert token_weights([(0, 3), (3, 5), (5, 7)], [WeightedSpan(0, 4, 1.0)]) == [1.0, 1.0, 0.0]


def test_whitespace_without_characters_belongs_to_the_text_before_it():
    prompt_end, completion_end = (2, 2), (6, 6)
    offsets = [(0, 1), prompt_end, (2, 5), completion_end, (6, 7)]
    assert token_weights(offsets, [WeightedSpan(2, 6, 1.0)]) == [0.0, 0.0, 1.0, 1.0, 0.0]


def test_control_tokens_that_stand_nowhere_are_not_learned():
    assert token_weights([(0, 0), (0, 3)], [WeightedSpan(0, 3, 1.0)]) == [0.0, 1.0]


def test_tokens_that_share_a_character_weigh_the_same():
    assert token_weights([(0, 1), (1, 2), (1, 2), (2, 3)], [WeightedSpan(1, 2, 0.5)]) == [0.0, 0.5, 0.5, 0.0]


def test_no_token_and_no_span():
    assert token_weights([], [WeightedSpan(0, 3, 1.0)]) == []
    assert token_weights([(0, 1)], []) == [0.0]


def test_masks():
    assert policy("prompt")(RENDERED) == [WeightedSpan(4, 8, 1.0)]
    assert policy("none")(RENDERED) == [WeightedSpan(0, 8, 1.0)]
    assert policy("completion")(RENDERED) == [WeightedSpan(0, 4, 1.0)]


def test_a_document_is_learned_whatever_the_roles():
    document = Rendered("abc", (Span(0, 4),), True, True, "", divisible=True, turns=(Turn(closing=3),))
    assert Mask(train_roles=["user"])(document) == [WeightedSpan(0, 4, 1.0)]
    assert Mask(train_roles=["user"], train_on_eot=False)(document) == [WeightedSpan(0, 3, 1.0)]


@given(mask=st.sampled_from([Mask(), Mask(train_roles=["user"]), Mask(train_turns="last")]))
def test_completion_is_the_inverse_of_prompt(mask):
    inverse = Mask(mask="completion", train_roles=mask.train_roles, train_turns=mask.train_turns)
    rendered = chat("user", "assistant")
    assert (characters(mask, rendered) == 1 - characters(inverse, rendered)).all()


def test_roles_are_chosen_among_the_turns():
    rendered = chat("user", "assistant")
    assert learned(Mask(), rendered) == [("a1.", 1), ("a2.", 1)]
    assert learned(Mask(train_roles=["user"]), rendered) == [("q1.", 1), ("q2.", 1)]
    assert learned(Mask(train_roles=["tool"]), rendered) == []


def test_only_the_last_learned_turn():
    assert learned(Mask(train_turns="last"), chat("assistant")) == [("a2.", 1)]
    assert learned(Mask(train_turns="last"), chat("user", "assistant")) == [("a2.", 1)]
    # nothing of the turns before is learned, nor their end token
    assert characters(Mask(train_turns="last"), chat("assistant"))[:24].sum() == 0
    both = Rendered("ab", (Span(0, 1), Span(1, 2)), False, False, "", turns=(Turn("assistant", message=1),) * 2)
    assert Mask(train_turns="last")(both) == [WeightedSpan(0, 2, 1.0)]  # two spans of one message


def test_messages_have_the_last_word_on_their_weight():
    rendered = chat("user", "assistant", weights={3: 0.5, 10: 3.0}, barred=(Span(24, 27),))
    assert learned(Mask(), rendered) == [("q1.", 0.5), ("a1.", 3.0)]
    none = characters(Mask(mask="none"), rendered)
    assert (none[3:6] == 0.5).all()
    assert (none[24:27] == 0).all()
    assert none[0] == none[27] == 1.0


def test_the_end_of_turn_may_be_left_out():
    assert learned(Mask(train_on_eot=False), chat("assistant")) == [("a1", 1), ("a2", 1)]
    assert learned(Mask(train_on_eot=False, mask="none"), chat("assistant")) == [
        ("U: q1. A: a1", 1),
        (" U: q2. A: a2", 1),
        ("", 1),  # the place of an end token, which this text has none of
    ]
    completion = Rendered("abc def", (Span(4, 8),), True, True, "", turns=(Turn("assistant", closing=7),))
    assert Mask(train_on_eot=False)(completion) == [WeightedSpan(4, 7, 1.0)]


def test_spans_of_the_masked_part_are_kept():
    assert learned(Mask(keep_spans="q[0-9]"), chat("assistant")) == [("q1", 1), ("a1.", 1), ("q2", 1), ("a2.", 1)]
    assert learned(Mask(keep_spans="nowhere"), chat("assistant")) == [("a1.", 1), ("a2.", 1)]
    half = chat("assistant", weights={10: 0.5})
    assert learned(Mask(keep_spans="a1"), half) == [("a1.", 0.5), ("a2.", 1)]  # learned already, with its own weight
    assert learned(Mask(), chat("assistant", kept=("U:",))) == [("U:", 1), ("a1.", 1), ("U:", 1), ("a2.", 1)]
    assert learned(Mask(), chat("assistant", kept=("q1.", ".")))[:1] == [("q1.", 1)]  # a dot is no pattern


def test_the_last_pattern_that_matches_weighs():
    rendered = chat("assistant")
    tiers = {"a": 2.0, "1": 3.0, "a1": 0.5}
    assert learned(Mask(span_weights=tiers), rendered) == [("a1", 0.5), (".", 1), ("a", 2), ("2.", 1)]
    assert learned(Mask(span_weights=dict(reversed(tiers.items()))), rendered)[:2] == [("a", 2), ("1", 3)]


def test_tiers_multiply_and_mask_but_never_unmask():
    rendered = chat("assistant", weights={10: 0.5})
    assert learned(Mask(span_weights={"[0-9]": 3.0}), rendered) == [
        ("a", 0.5),
        ("1", 1.5),
        (".", 0.5),
        ("a", 1),
        ("2", 3),
        (".", 1),
    ]
    assert learned(Mask(span_weights={"[0-9]": 0.0}), chat("assistant"))[0] == ("a", 1)
    assert learned(Mask(span_weights={"q": 5}), chat("assistant")) == [("a1.", 1), ("a2.", 1)]
    assert learned(Mask(keep_spans="q1", span_weights={"q": 5}), chat("assistant"))[:2] == [("q", 5), ("1", 1)]


@given(
    mask=st.builds(
        Mask,
        mask=st.sampled_from(["prompt", "completion"]),
        train_roles=st.sampled_from([("assistant",), ("user", "assistant")]),
        train_turns=st.sampled_from(["all", "last"]),
        keep_spans=st.sampled_from([None, "q", ".", ""]),
        span_weights=st.dictionaries(st.sampled_from(["a", "[0-9]", "U: q"]), st.sampled_from([0, 0.5, 2])),
        train_on_eot=st.booleans(),
    )
)
def test_spans_are_in_order_apart_and_not_empty(mask):
    rendered = chat("user", "assistant")
    spans = mask(rendered)
    assert all(span.start < span.end and span.weight > 0 for span in spans)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert not spans or spans[-1].end <= len(CHAT) + 1
    assert characters(mask, rendered)[[12, 26]].any() <= mask.train_on_eot


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "promt"}, "mask: got 'promt'; one of prompt, none, completion"),
        ({"train_turns": "first"}, "train_turns: got 'first'; one of all, last"),
        ({"mask": "none", "train_turns": "last"}, "train_turns: 'last' masks .* mask='none' masks nothing"),
        (
            {"train_roles": "assistant"},
            r"train_roles: a list of roles is wanted, such as \['assistant'\], got 'assistant'",
        ),
        ({"train_roles": []}, r"train_roles: a list of roles is wanted.*got \[\]"),
        ({"keep_spans": "a(b"}, r"keep_spans: 'a\(b' is no regular expression: missing \).* at position 1"),
        ({"keep_spans": 3}, "keep_spans: a regular expression is wanted, got 3"),
        ({"keep_field": ""}, "keep_field: the name of a column is wanted, got ''"),
        ({"span_weights": {"[": 1}}, r"span_weights: '\[' is no regular expression: unterminated character set"),
        ({"span_weights": {"a": -1}}, "span_weights: 'a': a number of at least 0 is wanted, got -1"),
        ({"span_weights": {"a": float("nan")}}, "span_weights: 'a': a number of at least 0 is wanted, got nan"),
        ({"span_weights": {"a": True}}, "span_weights: 'a': a number of at least 0 is wanted, got True"),
        ({"span_weights": ["a"]}, r"span_weights: a weight by regular expression is wanted, got \['a'\]"),
        ({"train_on_eot": "no"}, "train_on_eot: true or false is wanted, got 'no'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Mask(**options)


def test_strings_to_keep_are_in_the_text():
    assert kept_strings({"k": "q1"}, "k", CHAT, "f:1") == ("q1",)
    assert kept_strings({"k": ["q1", "U:"]}, "k", CHAT, "f:1") == ("q1", "U:")
    assert kept_strings({"k": None}, "k", CHAT, "f:1") == kept_strings({}, "k", CHAT, "f:1") == ()
    with pytest.raises(ValueError, match=r"f:1: 'k' \(keep_field\): 'q3' is not in the text"):
        kept_strings({"k": ["q1", "q3"]}, "k", CHAT, "f:1")
    for wrong in (3, [3], "", [""], {"a": 1}):
        with pytest.raises(ValueError, match=r"f:1: 'k' \(keep_field\): a string or a list of strings is wanted, got"):
            kept_strings({"k": wrong}, "k", CHAT, "f:1")


def test_the_token_that_closes_a_turn():
    rendered = chat("user", "assistant")
    words = [(0, 2), (2, 5), (5, 6), (6, 9), (9, 13), (13, 16), (16, 19), (19, 20), (20, 24)]
    assert closing_tokens(words, rendered) == [2, 4, 7, None]  # "." alone; "a1."; "."; cut off
    assert closing_tokens([], rendered) == [None] * 4
    assert closing_tokens([(0, 27)], Rendered(CHAT, (Span(3, 6),), False, False, "")) == [None]


def loss(logits, piece):
    batch = lay_out([[piece]], 0, causal=True)
    (target,) = batch.targets
    return cross_entropy(logits, target.labels, token_weight=target.weights), target


@settings(max_examples=20)
@given(weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=9).filter(lambda w: any(w[1:])))
def test_weights_in_the_loss(weights):
    generator = torch.Generator().manual_seed(len(weights))
    logits = torch.randn(1, len(weights), 11, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = [index % 11 for index in range(len(weights))]
    weighted, target = loss(logits, shifted(ids, weights))
    # a weight of 0 is a label of -100, and no gradient
    assert ((target.weights == 0) == (target.labels == IGNORE_INDEX)).all()
    (gradient,) = torch.autograd.grad(weighted, logits)
    assert (gradient[target.labels == IGNORE_INDEX] == 0).all()
    # sum w nll / sum w, by torch alone
    nll = torch.nn.functional.cross_entropy(logits[0, :-1], torch.tensor(ids[1:]), reduction="none")
    w = torch.tensor(weights[1:], dtype=torch.float64)
    torch.testing.assert_close(weighted, (w * nll).sum() / w.sum())
    # constant weights are none
    same, one = ([c * (weight > 0) for weight in weights] for c in (2.0, 1.0))
    torch.testing.assert_close(loss(logits, shifted(ids, same))[0], loss(logits, shifted(ids, one))[0])


def test_a_mask_leaves_logits_as_they_are():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=27, n_embd=8, n_layer=1, n_head=2)).eval()
    ids, offsets = [ord(character) % 30 for character in CHAT], [(place, place + 1) for place in range(len(CHAT))]
    outputs = []
    for mask in (Mask(), Mask(mask="none"), Mask(mask="completion"), Mask(span_weights={"a": 0.1}, train_turns="last")):
        weights = token_weights(offsets, mask(chat("assistant")))
        batch = lay_out([[shifted(ids, weights)]], 0, causal=True)
        with torch.no_grad():
            outputs.append((model(**batch.inputs).logits, batch.targets[0].labels))
    for logits, labels in outputs[1:]:
        assert torch.equal(logits, outputs[0][0])
        assert not torch.equal(labels, outputs[0][1])
