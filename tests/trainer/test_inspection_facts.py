"""Counts, lengths and padding: equal to what plain loops, or the batches themselves, say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastft.data import Sample, Samples
from fastft.hf.pretrained import load_tokenizer
from fastft.trainer.inspection import facts, lengths
from fastft.trainer.inspection.facts import count, draw_some, end_tokens
from fastft.trainer.tasks import Task

from .conftest import MakeConfig

EOS = 0  # of `model_dir`
LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=50)


@pytest.fixture(scope="module")
def tokenizer(model_dir: str) -> Any:
    tokenizer = load_tokenizer(model_dir)
    assert tokenizer.eos_token_id == EOS
    return tokenizer


@st.composite
def many_samples(draw: st.DrawFn) -> list[Sample]:
    samples = []
    document = 0
    for _ in range(draw(st.integers(1, 8))):
        document += draw(st.integers(0, 2))
        ids = draw(st.lists(st.integers(0, 4), min_size=1, max_size=9))
        weights = draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=len(ids), max_size=len(ids)))
        samples.append(Sample(ids, weights, 0, document))
    return samples


@given(samples=many_samples(), chunk=st.sampled_from([1, 5, 1 << 22]))
def test_counts_are_those_of_a_loop(tokenizer: Any, samples: list[Sample], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "CHUNK", chunk)
        found = count(Samples.of(samples), tokenizer)
    pairs = [pair for sample in samples for pair in zip(sample.input_ids, sample.weights, strict=True)]
    unmasked = [
        [t for t, w in list(zip(sample.input_ids, sample.weights, strict=True))[1:] if not w and t != EOS]
        for sample in samples
    ]
    ended = {
        sample.document
        for sample in samples
        if (EOS, True) in zip(sample.input_ids, map(bool, sample.weights), strict=True)
    }
    assert (found.samples, found.tokens) == (len(samples), len(pairs))
    assert found.records == len({sample.document for sample in samples})
    assert found.supervised == sum(weight != 0 for _, weight in pairs)
    assert found.masked == sum(map(len, unmasked))
    assert found.unmasked_samples == sum(not tokens for tokens in unmasked)
    assert found.ended == len(ended)
    assert found.weights == {w: n for w in (0.5, 1.0) if (n := sum(weight == w for _, weight in pairs))}


def test_few_different_weights_are_told_apart(tokenizer: Any) -> None:
    weights = [0.0, *(1 + place / 100 for place in range(30))]
    assert len(count(Samples.of([Sample([1] * 31, weights)]), tokenizer).weights) == facts.WEIGHTS


@given(LENGTHS)
def test_bins_hold_every_sample(values: list[int]) -> None:
    found = lengths.histogram("sample", np.asarray(values), 64)
    assert len(found.counts) <= lengths.BINS
    for n, start, end in zip(found.counts, found.edges, found.edges[1:], strict=False):
        assert n == sum(start <= value < end for value in values)
    assert sum(found.counts) == len(values)
    assert found.counts[0]
    assert found.counts[-1]
    ordered = sorted(values)
    assert found.quantiles["shortest"] == ordered[0]
    assert found.quantiles["longest"] == ordered[-1]
    assert found.quantiles["median"] == ordered[(len(values) - 1) // 2]


@pytest.mark.parametrize("options", [{}, {"group_by_length": True}, {"packing": True}])
def test_padding_is_that_of_the_batches(make_config: MakeConfig, tokenizer: Any, options: dict[str, Any]) -> None:
    task = Task("clm", make_config(**options), tokenizer)
    made = [batch for step in range(task.windows.steps_per_epoch) for batch in task.batches(step, 1)]
    used, area = sum(batch.tokens for batch in made), sum(batch.inputs["input_ids"].numel() for batch in made)
    assert lengths.padding_share(task) == pytest.approx(1 - used / area)
    fill = lengths.packed_fill(task)
    assert fill is not None
    rows = -(-sum(task.train.lengths) // 64)
    assert fill <= sum(task.train.lengths) / (64 * rows)


def test_nothing_is_drawn_of_what_is_always_learned(make_config: MakeConfig, tokenizer: Any) -> None:
    assert draw_some(Task("clm", make_config(), tokenizer), tokenizer) is None


def test_what_an_epoch_draws_is_counted(make_config: MakeConfig, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": "the sky is blue " * n}) + "\n" for n in (2, 5, 9))
    )
    task = Task(
        "p", make_config(objective="prefix_lm", train_data=str(tmp_path / "text.jsonl"), mask="none"), tokenizer
    )
    drawn = draw_some(task, tokenizer)
    assert drawn is not None
    assert (drawn.samples, drawn.tokens) == (3, sum(task.train.lengths))
    assert 0 < drawn.labels < count(task.train.samples, tokenizer).supervised
    assert drawn.ended == 3  # behind any prefix


def test_end_tokens_are_eos_and_what_the_template_closes_with(tokenizer: Any, model_dir: str) -> None:
    assert end_tokens(tokenizer) == {EOS}
    chat = load_tokenizer(model_dir)
    chat.add_special_tokens({"additional_special_tokens": ["<end>"]})
    chat.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} <end>\n{% endfor %}"
    assert end_tokens(chat) == {EOS, chat.convert_tokens_to_ids("<end>")}
    chat.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert end_tokens(chat) == {EOS}
