import dataclasses
import json
import os
import re
import resource
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from fastft.data import Mask, Sample, Samples, growing, keys, load_corpus, make_objective, store
from fastft.data.growing import InFolder, InMemory
from fastft.data.masking import WeightedSpan
from fastft.data.sources import Source

from .chat_templates import CHATML, LLAMA3


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    records = [{"prompt": f"the {number}", "completion": " user" * (number % 7), "id": 1} for number in range(600)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def load(data, tokenizer, tmp_path):
    def load(**options):
        options = {"cache_dir": tmp_path / "cache", "on_empty": "drop", **options}
        return load_corpus(str(options.pop("source", data)), options.pop("tokenizer", tokenizer), **options)

    return load


def folders(tmp_path):
    return sorted(path for path in (tmp_path / "cache" / "corpora").iterdir() if path.is_dir())


@pytest.mark.parametrize("options", [{}, {"limit": 50, "eval_fraction": 0.3}, {"max_length": 8, "num_proc": 0}])
def test_the_second_time_it_is_opened_and_equal(load, tmp_path, options):
    first = load(**options)
    (folder,) = folders(tmp_path)
    written = (folder / store.FACTS).stat().st_mtime_ns
    assert first == load(**options) == load(**options, cache=False)
    assert first.stats.dropped
    assert first.stats.ignored_columns["id"] >= 50
    assert 4 <= len(first.examples) <= 8
    assert (folder / store.FACTS).stat().st_mtime_ns == written
    assert folders(tmp_path) == [folder]


def test_arrays_are_mapped_and_nothing_else_is_left_behind(load, tmp_path):
    for _ in range(2):
        corpus = load()
        arrays = corpus.samples.arrays
        assert all(isinstance(array.base, np.memmap) for array in arrays.values())
        assert {name: str(array.dtype.str) for name, array in arrays.items()} == Samples.DTYPES
    (folder,) = folders(tmp_path)
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.bin" for name in Samples.DTYPES), "corpus.json"}
    assert (folder / "input_ids.bin").stat().st_size == 4 * corpus.stats.tokens


@pytest.mark.parametrize("name", [*(f"{name}.bin" for name in Samples.DTYPES), "corpus.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_a_damaged_corpus_is_told_and_made_again(load, tmp_path, name, damage):
    whole = load(cache=False)
    assert load() == whole
    (folder,) = folders(tmp_path)
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 3] ^= 1
        path.write_bytes({"flip": content, "cut": content[:-1], "grow": content + b" "}[damage])
    with pytest.warns(UserWarning, match=rf"the cached corpus '{re.escape(str(folder))}' is damaged \(.*made again"):
        again = load()
    assert again == whole
    assert folders(tmp_path) == [folder]
    assert load() == whole  # and without a warning


def test_any_flipped_byte_of_the_facts_is_seen(load, tmp_path):
    load(limit=3)
    (folder,) = folders(tmp_path)
    path = folder / store.FACTS
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.warns(UserWarning, match="is damaged"):
            assert store.load(folder) is None
    path.write_bytes(content)
    assert store.load(folder) is not None


def test_what_decides_the_corpus_names_it(data, make_tokenizer, load, tmp_path):
    tokenizer = make_tokenizer(pad_token="<|endoftext|>")
    clm = make_objective("clm", tokenizer, {})

    def key(content=b'{"text": "a"}\n', tokenizer=tokenizer, objective=clm, mask=None, **options):
        data.write_bytes(content)
        return keys.corpus_key(Source(str(data)), tokenizer, objective, mask or Mask(), {"limit": None, **options})

    more = make_tokenizer(pad_token="<|endoftext|>")
    more.add_tokens([AddedToken("<new>", normalized=False)])
    variants = [
        key(),
        key(b'{"text": "b"}\n'),
        key(tokenizer=more),
        key(tokenizer=make_tokenizer(pad_token="<|bos|>")),
        key(tokenizer=make_tokenizer(pad_token="<|endoftext|>", chat_template=CHATML)),
        key(tokenizer=make_tokenizer(pad_token="<|endoftext|>", chat_template=LLAMA3)),
        key(objective=make_objective("clm", tokenizer, {"max_length": 7})),
        key(mask=Mask("none")),
        key(mask=Mask(span_weights={"a": 1.0, "b": 2.0})),
        key(mask=Mask(span_weights={"b": 2.0, "a": 1.0})),
        key(limit=3),
        key(limit=3, seed=1),
    ]
    assert len(set(variants)) == len(variants)
    assert key() == variants[0]
    assert key(objective=dataclasses.replace(clm)) == variants[0]
    tokenizer(["the", "the user"], padding=True, truncation=True, max_length=3)
    assert key() == variants[0], "a call's truncation and padding stay with the tokenizer and mean nothing here"


def test_a_long_file_differs_wherever_it_differs(data, tokenizer):
    def key(place):
        content = bytearray(keys.PIECE * 2 + 5)
        content[place] = 1
        data.write_bytes(content)
        return keys.corpus_key(Source(str(data)), tokenizer, make_objective("clm", tokenizer, {}), Mask(), {})

    places = (0, keys.PIECE - 1, keys.PIECE, keys.PIECE * 2 + 4)
    assert len({key(place) for place in places}) == len(places)


def test_a_mask_of_the_users_own_is_not_cached_and_said_so(load, tmp_path):
    with pytest.warns(UserWarning, match=r"not cached: .*<lambda> is not of fastft; cache=False says"):
        corpus = load(mask=lambda rendered: [WeightedSpan(0, len(rendered.text) + 1, 1.0)], on_empty="error")
    assert corpus.samples == load(mask="none", on_empty="error").samples
    assert len(folders(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_loses_nothing(load, tmp_path):
    whole = load(cache=False)
    (tmp_path / "cache").write_text("a file, and no folder")
    with pytest.warns(UserWarning, match="kept in memory, as it cannot be written to the cache"):
        assert load() == whole


def test_a_full_disk_loses_nothing(load, tmp_path, monkeypatch):
    """The limit on the size of files stands for a full disk: it too stops a write half way."""
    whole = load(cache=False)
    monkeypatch.setattr("fastft.data.build.CHUNK", 16)
    for room in (0, 1000, 4 * whole.stats.tokens - 4):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.warns(UserWarning, match="in memory, as it cannot be written to the cache: .*large"):
                corpus = load()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert corpus == whole
        assert folders(tmp_path) == []


def test_growing_arrays_hold_what_was_appended(tmp_path):
    parts = [Samples.of([Sample([index] * index, [0.5] * index, index, index)] * index) for index in range(4)]
    whole = Samples.of([sample for part in parts for sample in part])
    for grown in (InMemory(), InFolder(tmp_path / "x")):
        for part in parts:
            grown.append(part)
        assert grown.finish() == whole
    assert InMemory().finish() == Samples.of([])
    nothing = InFolder(tmp_path / "y")
    assert nothing.finish() == Samples.of([])
    nothing.discard()


def test_processes_that_ask_at_once_make_it_once(load, tmp_path):
    made, found = [], []

    def ask():
        def make(growing):
            made.append(1)
            time.sleep(0.3)
            return load_whole(growing)

        found.append(store.kept(tmp_path / "cache" / "corpora" / "key", make))

    corpus = load(cache=False)

    def load_whole(growing):
        grown = growing()
        grown.append(corpus.samples)
        return dataclasses.replace(corpus, samples=grown.finish())

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert found == [corpus] * 3


def test_a_place_taken_meanwhile_is_left_as_it_is(load, tmp_path, monkeypatch):
    """As where no lock can be had: another process puts the same corpus there while this one makes it."""
    corpus = load()
    (folder,) = folders(tmp_path)
    shutil.copytree(folder, tmp_path / "other")
    shutil.rmtree(folder)
    collect = store.os.rename

    def late(draft, target):
        if not os.path.exists(target):
            shutil.copytree(tmp_path / "other", target)
        collect(draft, target)

    monkeypatch.setattr(store.os, "rename", late)
    assert load() == corpus
    assert folders(tmp_path) == [folder]


def test_drafts_of_killed_processes_are_removed(load, tmp_path):
    drafts = [tmp_path / "cache" / "corpora" / f"{growing.DRAFT}{name}" for name in ("old", "new")]
    for draft in drafts:
        draft.mkdir(parents=True)
        (draft / "input_ids.bin").write_text("x")
    past = time.time() - store.ABANDONED - 60
    for path in (drafts[0] / "input_ids.bin", drafts[0]):
        os.utime(path, (past, past))
    load()
    assert [draft.exists() for draft in drafts] == [False, True]


def test_a_source_that_changes_while_it_is_read_is_not_kept(load, data, tmp_path, monkeypatch):
    collect = load_corpus.__globals__["collect"]

    def late(*arguments):
        corpus = collect(*arguments)
        data.write_text(data.read_text() + '{"prompt": "a", "completion": "b"}\n')
        return corpus

    monkeypatch.setitem(load_corpus.__globals__, "collect", late)
    with pytest.raises(ValueError, match="was changed while it was read"):
        load()
    assert folders(tmp_path) == []


def test_mapped_samples_make_the_same_batches(load, tokenizer):
    first, second = load(), load(cache=False)
    objective = make_objective("clm", tokenizer, {})
    rows = [[index] for index in range(0, len(first.samples), 7)]
    batches = [objective.batch(corpus.samples, rows, None) for corpus in (first, second)]
    assert torch.equal(batches[0].inputs["input_ids"], batches[1].inputs["input_ids"])
    assert torch.equal(batches[0].targets[0].weights, batches[1].targets[0].weights)
