"""Any cut of the same samples into micro-batches and processes gives one gradient, for every objective."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastft import unpatch
from fastft.data import OBJECTIVES, Batch, Draw
from fastft.trainer import Trainer
from fastft.trainer.gradient import totals, window_gradient

from .conftest import MakeTrainer

CPU, SAMPLES = torch.device("cpu"), 9
TWO_SIDED = ("mlm", "nsp", "sop")
ENCODER_DECODER = ("seq2seq", "span_corruption", "ul2")


@pytest.fixture(params=sorted(OBJECTIVES))
def trainer(
    request: pytest.FixtureRequest,
    make_trainer: MakeTrainer,
    bert_dir: str,
    t5_dir: str,
    documents: str,
    data_file: str,
) -> Iterator[Trainer]:
    name = request.param
    changes: dict[str, Any] = {"objective": name, "on_empty": "drop"}
    if name in TWO_SIDED:
        changes |= {"model": bert_dir, "train_data": documents, "packing": False}
    elif name in ENCODER_DECODER:
        changes |= {"model": t5_dir, "train_data": data_file if name == "seq2seq" else documents}
    made = make_trainer(**changes)
    made.model.eval()  # dropout is drawn by batch
    yield made
    made.shares.close()


def batches_of(trainer: Trainer, parts: list[list[int]]) -> list[Batch]:
    task, draw = trainer.tasks[0], Draw(3, 1)
    return [task.objective.batch(task.train.samples, [[index] for index in part], draw) for part in parts]


def gradient(model: Any, trainer: Trainer, parts: list[list[int]], processes: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batches = batches_of(trainer, parts)
    items = totals(batches)
    for rank in range(processes):
        if batches[rank::processes]:
            window_gradient(model, batches[rank::processes], CPU, nullcontext(), items=items)
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, SAMPLES - 1)), processes=st.integers(1, 4), order=st.permutations(range(SAMPLES)))
def test_any_cut_gives_the_gradient_of_one_batch(
    trainer: Trainer, cuts: set[int], processes: int, order: list[int]
) -> None:
    model = trainer.model
    whole = gradient(unpatch(copy.deepcopy(model)).double(), trainer, [list(range(SAMPLES))], 1)
    edges = [0, *sorted(cuts), SAMPLES]
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    found = gradient(model, trainer, parts, processes)
    assert found.keys() == whole.keys()
    scale = max(float(value.abs().max()) for value in whole.values())
    for name, value in whole.items():
        assert float((found[name] - value).abs().max()) <= 3e-5 * scale, name
