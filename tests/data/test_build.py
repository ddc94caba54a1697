import json
from itertools import count, islice, pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastft.data import Corpus, Stats, corpus, load_corpus
from fastft.data.build import CHUNK, CHUNK_CHARS, EXAMPLES, NothingToLearn, add, chunks, is_shown
from fastft.data.growing import InMemory


@given(st.integers(1, 20_000))
def test_examples_are_up_to_sixteen_spread_over_all_and_known_as_records_come(n):
    shown = [index for index in range(n) if is_shown(index, n)]
    assert min(n, 9) <= len(shown) <= 16
    gaps = {b - a for a, b in pairwise(shown)}
    assert len(gaps) <= 1
    assert shown[0] == 0
    assert n - shown[-1] <= max([1, *gaps])
    assert all(is_shown(index, index + 1) for index in shown), "was shown when it was the last"


@given(st.lists(st.integers(0, CHUNK_CHARS), max_size=30))
def test_chunks_are_bounded_in_number_and_size_and_hold_everything(sizes):
    made = list(chunks(sizes, lambda size: size))
    assert [size for _, chunk in made for size in chunk] == sizes
    assert [start for start, _ in made] == [sum(len(chunk) for _, chunk in made[:place]) for place in range(len(made))]
    assert all(sum(chunk[:-1]) < CHUNK_CHARS for _, chunk in made)


def test_chunks_are_taken_as_they_are_asked_for():
    read = count()
    assert [len(chunk) for _, chunk in islice(chunks(read, lambda _: 1), 3)] == [CHUNK] * 3
    assert next(read) == 3 * CHUNK


def test_records_stream(tmp_path, tokenizer, monkeypatch):
    """No more than a chunk of them is read before its samples are put away, however many there are."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}", "completion": " user"}) + "\n" for i in range(1000)))
    read, put = [], []

    class Watched(InMemory):
        def append(self, samples):
            put.append((len(read), len(samples)))
            super().append(samples)

    def watched(source):
        for record in iterate(source):
            read.append(record)
            yield record

    iterate = corpus.Source.__iter__
    monkeypatch.setattr(corpus.Source, "__iter__", watched)
    monkeypatch.setattr(corpus, "InMemory", Watched)
    made = load_corpus(str(path), tokenizer, cache=False)
    assert put == [(1 + CHUNK, CHUNK), (1 + 2 * CHUNK, CHUNK), (1 + 3 * CHUNK, CHUNK), (1001, 1000 - 3 * CHUNK)]
    assert isinstance(made, Corpus)


def test_counts_of_parts_add_up():
    total = Stats(1, 2, 3, 4, 5, {"a": 5}, {"id": 1}, {"[0-9]": 2})
    add(total, Stats(10, 20, 30, 40, 50, {"b": 49, "a": 1}, {"x": 1}, {"[0-9]": 3}))
    assert total == Stats(11, 22, 33, 44, 55, {"a": 6, "b": 49}, {"id": 1, "x": 1}, {"[0-9]": 5})


def test_the_first_record_with_nothing_to_learn_is_named_wherever_its_chunk_begins(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    records = [{"prompt": "the", "completion": " user" if index != 700 else " "} for index in range(1000)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(NothingToLearn, match=r"sample 700 \(.*data\.jsonl:701, 'the'\) has nothing to learn"):
        load_corpus(str(path), tokenizer, cache=False)
    made = load_corpus(str(path), tokenizer, cache=False, on_empty="drop")
    assert made.samples.arrays["documents"].tolist() == [index for index in range(1000) if index != 700]
    assert len(made.examples) == EXAMPLES
