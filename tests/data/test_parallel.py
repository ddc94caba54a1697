import json
import os
import time

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from fastft.data import load_corpus
from fastft.data.masking import WeightedSpan
from fastft.data.parallel import AHEAD, ordered

from .chat_templates import CHATML

MARKS = "ab cé\u2028\n"


def slower_at_first(item):
    if item < 0:
        raise ValueError(f"item {item} is bad")
    time.sleep(0.2 if item == 0 else 0)
    return item, os.getpid()


def items(taken, *values):
    for value in values:
        if isinstance(value, Exception):
            raise value
        taken.append(value)
        yield value


def test_results_come_in_order_from_other_processes_and_few_are_taken_ahead():
    taken = []
    results = ordered(slower_at_first, items(taken, *range(40)), 2)
    assert next(results)[0] == 0
    assert len(taken) <= 2 * AHEAD + 1
    rest = list(results)
    assert [item for item, _ in rest] == list(range(1, 40))
    assert os.getpid() not in {process for _, process in rest}


@pytest.mark.parametrize("num_proc", [0, 1])
@pytest.mark.parametrize(
    ("values", "message"), [((0, -1, 2, -3), "item -1 is bad"), ((0, 1, KeyError("item 2")), "item 2")]
)
def test_the_first_error_arrives_with_its_message_after_what_came_before_it(num_proc, values, message):
    seen = []
    with pytest.raises((ValueError, KeyError), match=message):
        seen.extend(item for item, _ in ordered(slower_at_first, items([], *values), num_proc))
    assert seen == [value for value in values[:2] if value in (0, 1)]


def test_a_process_that_dies_is_told():
    with pytest.raises(ChildProcessError, match="num_proc=1: a process ended without an answer"):
        list(ordered(os._exit, [3], 1))


def test_what_cannot_be_sent_or_counted_is_refused():
    with pytest.raises(ValueError, match=r"num_proc: got 2, but what is to be done cannot be sent .*lambda"):
        list(ordered(lambda item: item, [1], 2))
    with pytest.raises(ValueError, match="num_proc: got -1"):
        list(ordered(print, [1], -1))


@pytest.fixture
def files(tmp_path):
    """Completions, some of which are dropped and some cut, and documents."""

    def write(name, records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return [
        write("a.jsonl", ({"prompt": f"é {i}", "completion": " x" * (i % 40), "id": 1} for i in range(1500))),
        write("b.jsonl", ({"text": f"the model {i}\n" * (i % 9) or " " * i} for i in range(700))),
    ]


def test_a_corpus_is_the_same_for_every_number_of_processes(files, make_tokenizer):
    tokenizer = make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")
    options = {"on_empty": "drop", "max_length": 24, "eval_fraction": 0.3, "cache": False}
    for path, num_proc, more in zip(files, (2, 1), ({}, {"limit": 90, "split": "eval"}), strict=True):
        alone = load_corpus(path, tokenizer, **options, **more)
        assert load_corpus(path, tokenizer, num_proc=num_proc, **options, **more) == alone
        assert alone.stats.dropped
        assert alone.stats.samples == more.get("limit", alone.stats.samples)


def test_an_error_in_a_process_names_the_record(files, tokenizer):
    with pytest.raises(ValueError, match=r"sample 0 \(.*a\.jsonl:1, 'é 0'\) has nothing to learn"):
        load_corpus(files[0], tokenizer, num_proc=1, cache=False)
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        load_corpus(files[0], tokenizer, num_proc=1, cache=False, mask=lambda _: [WeightedSpan(0, 1, 1.0)])


RECORDS = st.lists(
    st.fixed_dictionaries({"prompt": st.text(MARKS, max_size=9), "completion": st.text(MARKS, max_size=30)}),
    min_size=1,
    max_size=40,
).map(lambda records: [*records, {"prompt": "the", "completion": " user"}])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(RECORDS, st.integers(1, 41), st.integers(1, 100), st.sampled_from(["prompt", "none"]))
def test_where_chunks_end_changes_nothing(tokenizer, tmp_path, monkeypatch, records, size, chars, mask):
    """Processes get chunks, and nothing else of a corpus depends on them."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"on_empty": "drop", "max_length": 12, "cache": False, "mask": mask}
    with monkeypatch.context() as patch:
        whole = load_corpus(str(path), tokenizer, **options)
        patch.setattr("fastft.data.build.CHUNK", size)
        patch.setattr("fastft.data.build.CHUNK_CHARS", chars)
        assert load_corpus(str(path), tokenizer, **options) == whole
