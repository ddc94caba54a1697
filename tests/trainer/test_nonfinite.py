import json
import math

import pytest
import torch

from fastft.trainer.nonfinite import KEPT, LossWatch

WINDOW = [[5, 6], [7, 8]]


def verdict(shares: list[float], grad_norm: float, window: list[list[int]], step: int) -> str | None:
    return LossWatch(None).judge(torch.tensor(shares), grad_norm, window, step, 1e-3)


def test_numbers_pass() -> None:
    assert verdict([1.0, 0.0], 3.0, WINDOW, 1) is None


@pytest.mark.parametrize(
    ("shares", "grad_norm", "samples"),
    [
        ([1.0, math.nan], math.nan, "samples 7, 8 of"),
        ([math.inf, 1.0], 1.0, "samples 5, 6 of"),
        ([1.0, 1.0], math.inf, "samples 5, 6, 7, 8 of"),
    ],
)
def test_names_the_samples_of_the_batches_at_fault(shares: list[float], grad_norm: float, samples: str) -> None:
    problem = verdict(shares, grad_norm, WINDOW, 12)
    assert problem is not None
    assert samples in problem
    assert problem.startswith("step 12: loss ")
    assert "The step was not applied. Lower learning_rate (now 1.00e-03)" in problem


def test_a_long_list_is_cut() -> None:
    assert "30, 31, ... of" in str(verdict([math.nan], 1.0, [list(range(100))], 1))


def judged(watch: LossWatch, losses: list[float]) -> list[bool]:
    """Whether each step is bad."""
    return [watch.judge(torch.tensor([loss / 4, loss * 3 / 4]), 1.0, WINDOW, 9, 1e-3) is not None for loss in losses]


def test_a_spike_is_told_by_the_median() -> None:
    usual = [2.0 + 0.01 * (i % 5) for i in range(20)]
    watch = LossWatch(3.0)
    assert not any(judged(watch, [*usual, 6.0]))
    problem = watch.judge(torch.tensor([1.0, 5.5]), 4.25, WINDOW, 22, 1e-3)
    assert problem is not None
    assert "step 22: loss 6.5, more than 3 times the median 2.02 of the last 21, gradient norm 4.25, " in problem
    assert "on samples 7, 8, 5, 6 of the training data" in problem
    assert not any(judged(LossWatch(None), [*usual, 1e9]))


def test_nothing_is_a_spike_before_there_is_a_median() -> None:
    assert not any(judged(LossWatch(2.0), [1.0] * 15 + [100.0]))
    assert judged(LossWatch(2.0), [1.0] * 16 + [100.0])[-1]
    assert not any(judged(LossWatch(2.0), [0.0] * 20 + [1.0]))  # a median of 0 is no measure


def test_a_lasting_rise_is_taken_in_the_end() -> None:
    watch = LossWatch(2.0, [1.0] * KEPT)
    found = judged(watch, [5.0] * 40)
    assert found == [True] * 32 + [False] * 8


def test_a_resumed_watch_decides_as_the_unkilled_one() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (torch.rand(200, generator=generator) ** 3 * 4).tolist()
    losses[40] = losses[120] = math.nan
    whole, first = LossWatch(3.0), LossWatch(3.0)
    expected = judged(whole, losses)
    assert 5 < sum(expected) < 100
    before = judged(first, losses[:90])
    second = LossWatch(3.0, json.loads(json.dumps(first.losses)))
    assert before + judged(second, losses[90:]) == expected
    assert second.losses == whole.losses
    assert len(whole.losses) == KEPT
