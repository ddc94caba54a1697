import json

import pytest

from fastft.data import Mask, load_corpus, make_objective

from .chat_templates import CHATML
from .tiny_encoders import TEXTS, wordpiece

RECORDS = {
    "text": {"text": "the user reads"},
    "prompt_completion": {"prompt": "the user", "completion": " reads"},
    "instruction": {"instruction": "the", "input": "user", "output": "reads"},
    "messages": {"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "reads"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "the"}, {"from": "gpt", "value": "reads"}]},
    "source_target": {"source": "the", "target": "reads"},
}


@pytest.fixture
def chat(make_tokenizer):
    return make_tokenizer(chat_template=CHATML, eos_token="<|im_end|>")


@pytest.fixture
def jsonl(tmp_path):
    def write(*records):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


@pytest.mark.parametrize("format", RECORDS)
@pytest.mark.parametrize("named", [False, True])
def test_every_format_from_file_to_samples(jsonl, chat, format, named):
    corpus = load_corpus(jsonl(RECORDS[format], RECORDS[format]), chat, format=format if named else "auto")
    first, second = corpus.samples
    assert (first.input_ids, first.weights) == (second.input_ids, second.weights)
    text = chat.decode([token for token, weight in zip(first.input_ids, first.weights, strict=True) if weight])
    assert text.strip().endswith("reads<|im_end|>")
    assert corpus.stats.samples == 2


def test_rows_and_tokens(tmp_path, jsonl, tokenizer):
    (tmp_path / "data.csv").write_text('prompt,completion\n"the user"," reads, and\nreads"\n')
    (sample,) = load_corpus(str(tmp_path / "data.csv"), tokenizer).samples
    assert tokenizer.decode(sample.input_ids) == "the user reads, and\nreads<|endoftext|>"
    for given in ({"weights": [1.0, 0.0, 0.5]}, {"labels": [-100, -100, 7]}, {}):
        (sample,) = load_corpus(jsonl({"input_ids": [5, 6, 7], **given}), tokenizer).samples
        assert sample.input_ids == [5, 6, 7]
        assert sample.weights == {"weights": [0, 0, 0.5], "labels": [0, 0, 1]}.get(next(iter(given), ""), [0, 1, 1])


def test_text_files_and_folders(tmp_path, tokenizer):
    for name in ("x", "y", "z"):
        (tmp_path / f"{name}.txt").write_text(f"the {name}\n" * 100)
    alone = load_corpus(str(tmp_path / "x.txt"), tokenizer, max_length=64)
    assert set(alone.lengths[:-1]) == {64}
    everything = load_corpus(str(tmp_path), tokenizer, max_length=64)
    assert everything.stats.samples == 3 * alone.stats.samples
    train, held_out = (
        load_corpus(str(tmp_path), tokenizer, split=split, eval_fraction=0.3, max_length=64)
        for split in ("train", "eval")
    )
    assert (train.stats.samples, held_out.stats.samples) == (2 * alone.stats.samples, alone.stats.samples)
    assert load_corpus(str(tmp_path / "x.txt"), tokenizer, split="eval", eval_fraction=0.1).stats.tokens > 10


def test_columns_that_are_not_used_are_told(jsonl, tokenizer):
    records = [{**RECORDS["prompt_completion"], "id": 1, "source": "x"}, {**RECORDS["prompt_completion"], "id": 2}]
    assert load_corpus(jsonl(*records), tokenizer).stats.ignored_columns == {"id": 2, "source": 1}
    assert load_corpus(jsonl(RECORDS["instruction"]), tokenizer).stats.ignored_columns == {}


def test_a_limit_draws_records_or_blocks(jsonl, tokenizer):
    path = jsonl(*({"prompt": "the", "completion": f" {number}"} for number in range(100)))
    some = load_corpus(path, tokenizer, limit=10)
    assert some.stats.samples == len(some.samples) == 10
    assert some.samples != load_corpus(path, tokenizer, limit=10, seed=1).samples
    held_out = [
        load_corpus(path, tokenizer, limit=5, seed=seed, split="eval", eval_fraction=0.3).samples for seed in (0, 1)
    ]
    assert held_out[0] == held_out[1]
    path = jsonl({"text": "the user reads " * 200})
    blocks = load_corpus(path, tokenizer, max_length=16, limit=3)
    assert blocks.lengths == [16, 16, 16]
    assert (blocks.stats.samples, blocks.stats.tokens, blocks.stats.supervised_tokens) == (3, 48, 45)


def test_a_corpus_is_the_same_each_time(jsonl, chat):
    path = jsonl(*({"prompt": f"the {number}", "completion": "user"} for number in range(20)))
    options = {"eval_fraction": 0.2, "limit": 7, "seed": 3}
    assert load_corpus(path, chat, **options) == load_corpus(path, chat, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "promt"}, "mask: got 'promt'"),
        ({"format": "alpca"}, "format: got 'alpca'; one of auto, text, .*, alpaca is wanted"),
        ({"num_proc": -1}, "num_proc: got -1"),
        ({"on_empty": "skip"}, "on_empty: got 'skip'"),
        ({"format": "messages"}, r"data\.jsonl:1: no column 'messages'; found prompt, completion"),
        ({"split": "test"}, "split: got 'test'"),
        ({"limit": 0}, "limit: got 0"),
        ({"max_length": 0}, "max_length: got 0"),
    ],
)
def test_options_are_checked(jsonl, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(jsonl(RECORDS["prompt_completion"]), tokenizer, **options)


def test_the_line_of_a_bad_record_is_named(jsonl, tokenizer):
    good = RECORDS["prompt_completion"]
    with pytest.raises(ValueError, match=r"data\.jsonl:2: 'completion': a string is wanted, got null"):
        load_corpus(jsonl(good, {**good, "completion": None}), tokenizer)
    with pytest.raises(ValueError, match=r"sample 1 \(.*data\.jsonl:2, 'the user'\) has nothing to learn"):
        load_corpus(jsonl(good, {**good, "completion": ""}), tokenizer)


def test_the_docstring_corpus_with_smollm2(smollm2):
    corpus = load_corpus("builtin:stdlib-docstrings", smollm2, split="eval", eval_fraction=0.05, limit=64)
    assert corpus.stats.samples == 64
    assert 0.05 < corpus.stats.supervised_tokens / corpus.stats.tokens < 0.5
    assert corpus.stats.truncated == 0
    for sample in corpus.samples:
        assert sample.input_ids[-1] == smollm2.eos_token_id
        first = sample.weights.index(1.0)
        assert sample.weights == [0.0] * first + [1.0] * (len(sample.weights) - first)
        assert smollm2.decode(sample.input_ids[:first]).endswith("```<|im_end|>\n<|im_start|>assistant\n")
    assert len(corpus.examples) == 8
    assert len({example.origin.split(":")[0] for example in corpus.examples}) > 3


@pytest.mark.parametrize("cache", [True, False])
def test_a_corpus_of_one_document_is_refused_when_it_is_loaded(tmp_path, cache):
    tokenizer = wordpiece()
    objective = make_objective("nsp", tokenizer, {"max_length": 24})
    path = tmp_path / "a.jsonl"
    texts = [" ".join(TEXTS[start : start + 4]) for start in (0, 4)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"objective": objective, "cache": cache, "cache_dir": tmp_path / "cache"}
    assert len(load_corpus(str(path), tokenizer, **options).samples) > 2
    for _ in range(2):  # made, and then found in the cache
        with pytest.raises(ValueError, match=r"source '.*a\.jsonl', split 'eval': 'nsp' takes random sentences"):
            load_corpus(str(path), tokenizer, eval_fraction=0.5, split="eval", **options)
    path.write_text(json.dumps({"text": texts[0]}))
    with pytest.raises(ValueError, match=r"source '.*a\.jsonl': 'nsp' takes random sentences from other documents"):
        load_corpus(str(path), tokenizer, **options)
    sop = make_objective("sop", tokenizer, {"max_length": 24})
    assert len(load_corpus(str(path), tokenizer, **{**options, "objective": sop}).samples)


@pytest.mark.parametrize("num_proc", [0, 2])
def test_records_that_expressions_match_in_are_counted(jsonl, tokenizer, num_proc):
    records = [{"prompt": "the user ", "completion": f"reads {n % 3}"} for n in range(600)]
    mask = Mask(keep_spans="user", span_weights={"reads [01]": 1.0, "[0-9]": 2.0, "nowhere": 0.0})
    for _ in range(2):
        found = load_corpus(jsonl(*records), tokenizer, mask=mask, num_proc=num_proc).stats
        assert found.matched == {"user": 600, "reads [01]": 400, "[0-9]": 600}
