import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastft.trainer.evaluation.error_rate import distance, error_rate

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


def test_known_distances():
    assert distance("kitten", "sitting") == 3
    assert distance("", "abc") == distance("abc", "") == 3


@given(WORDS, WORDS, WORDS)
def test_it_is_a_metric(a, b, c):
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))


def test_edits_are_counted_per_word_of_all_references():
    assert error_rate([("HH AH0 L OW1", "HH AH0 L OW1"), ("B AE1 T", "B EH1 T S")]) == pytest.approx(2 / 7)
    assert error_rate([("a", "b c d")]) == 3.0


def test_references_without_words():
    with pytest.raises(ValueError, match="the references have no words"):
        error_rate([("", "a")])
