from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastft.data.masking import Rendered, Span, WeightedSpan, policy, token_weights

RENDERED = Rendered("abc def", (Span(4, 8),), closed=True, add_special_tokens=True, opening="")
CUTS = st.lists(st.integers(0, 30), min_size=2, max_size=12).map(sorted)
SPANS = st.lists(
    st.tuples(st.integers(0, 31), st.integers(0, 31), st.sampled_from([0.25, 0.5, 1.0, 2.0])), max_size=4
).map(lambda found: [WeightedSpan(min(a, b), max(a, b), weight) for a, b, weight in found])


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


def test_no_token_and_no_span():
    assert token_weights([], [WeightedSpan(0, 3, 1.0)]) == []
    assert token_weights([(0, 1)], []) == [0.0]


def test_policies():
    assert policy("prompt")(RENDERED) == [WeightedSpan(4, 8, 1.0)]
    assert policy("none")(RENDERED) == [WeightedSpan(0, 8, 1.0)]
    with pytest.raises(ValueError, match="mask: got 'promt'; one of prompt, none"):
        policy("promt")
