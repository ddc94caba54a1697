import pytest

from fastft.data import Corpus, Sample, Samples, Stats


def test_weights_and_ids_have_one_length():
    with pytest.raises(ValueError, match="weights: got 1 for 2 input_ids"):
        Sample([1, 2], [0.0])


def test_stats_count_and_tell():
    stats = Stats()
    stats.add(Sample([1, 2, 3, 4], [0.0, 0.0, 0.5, 1.0]), truncated=True)
    stats.add(Sample([1] * 1000, [0.0] * 1000), truncated=False)
    for reason in ("blank", "blank", "too long"):
        stats.drop(reason)
    stats.ignored_columns["id"] = 2
    assert (stats.samples, stats.tokens, stats.supervised_tokens, stats.truncated) == (2, 1004, 2, 1)
    assert (stats.dropped, stats.drop_reasons) == (3, {"blank": 2, "too long": 1})
    assert stats.summary().splitlines() == [
        "2 samples, 1,004 tokens, 2 of them supervised (0.2 %)",
        "1 samples cut at max_length",
        "2 records dropped: blank",
        "1 records dropped: too long",
        "columns not used: id (2)",
    ]


def test_lengths_are_in_sample_order():
    corpus = Corpus(Samples.of([Sample([1, 2], [0.0, 1.0]), Sample([1, 2, 3], [0.0, 1.0, 1.0])]), Stats(), [])
    assert corpus.lengths == [2, 3]
