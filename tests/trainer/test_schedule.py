import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from fastft.trainer.schedule import factor

KINDS = ("constant", "linear", "cosine")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (12, 10), (0, 1), (1, 2)])
def test_equals_transformers_after_the_warmup(kind: str, warmup: int, total: int) -> None:
    name = "constant_with_warmup" if kind == "constant" else kind
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        expected = (step + 1) / (warmup + 1) if step < warmup else optimizer.param_groups[0]["lr"]
        assert factor(kind, step, warmup, total) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        theirs.step()


@given(st.sampled_from(KINDS), st.integers(1, 300), st.floats(0, 50), st.data())
def test_every_step_learns_and_none_more_than_the_peak(
    kind: str, total: int, warmup: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, total - 1))
    assert 0 < factor(kind, step, warmup, total) <= 1


def test_a_warmup_below_one_is_a_share() -> None:
    assert [factor("linear", step, 0.25, 10) for step in range(10)] == [
        factor("linear", step, math.ceil(2.5), 10) for step in range(10)
    ]


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="lr_scheduler_type is 'step'"):
        factor("step", 5, 0, 10)
