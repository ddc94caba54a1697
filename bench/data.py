"""Preparing the demo's data: tokens a second, stage by stage. A run's own tokens a second are what it has to beat.

tokenise    read, render, mask and tokenise, in this process, nothing cached
open        the same corpus from the cache, every byte checked
pack        samples to rows
batch       rows to tensors: packed CLM, and MLM with masks drawn

python -m pytest bench/data.py --benchmark-only
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastft.data import Corpus, Draw, load_corpus, make_objective
from fastft.data.packing import pack
from fastft.hf.pretrained import load_tokenizer
from fastft.trainer.demo import DEFAULTS

ROWS = 8  # of a batch
STAGES = ("tokenise", "open", "pack", "batch-clm", "batch-mlm")


@pytest.mark.parametrize("stage", STAGES)
def test_data(
    stage: str,
    benchmark: BenchmarkFixture,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The rate is that of the median round. What one stage has put into the cache, the next ones open."""
    call, tokens = stage_of(stage, tmp_path_factory.getbasetemp() / "cache")
    benchmark.pedantic(call, rounds=3 if stage == "tokenise" else 20, warmup_rounds=1)
    rate = tokens / benchmark.stats.stats.median
    benchmark.extra_info["tokens_per_second"] = rate
    with capsys.disabled():
        print(f"\n{stage}: {rate:,.0f} tokens/s")


def stage_of(stage: str, folder: Path) -> tuple[Callable[[], object], int]:
    """What to time, and how many tokens it takes care of."""
    length = DEFAULTS["max_length"]
    masked = stage == "batch-mlm"
    tokenizer = load_tokenizer("builtin:minilm" if masked else DEFAULTS["model"])
    objective = make_objective("mlm" if masked else "clm", tokenizer, {"max_length": length})

    def load(cache: bool) -> Corpus:
        return load_corpus(
            DEFAULTS["train_data"], tokenizer, objective=objective, on_empty="drop", cache=cache, cache_dir=folder
        )

    corpus = load(cache=True)
    if stage in ("tokenise", "open"):
        return (lambda: load(cache=stage == "open")), corpus.stats.tokens
    lengths = corpus.lengths
    if stage == "pack":
        return (lambda: pack(lengths, length)), corpus.stats.tokens
    rows = pack(lengths, length)[:ROWS]
    epochs = itertools.count()
    tokens = sum(lengths[index] for row in rows for index in row)
    return (lambda: objective.batch(corpus.samples, rows, Draw(0, next(epochs)))), tokens
