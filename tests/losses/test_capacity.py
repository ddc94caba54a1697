"""`valid` of a fixed length, -1s at its end, and the GPU's way with it: trusted, never looked at, rows padded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastft.losses import arguments, linear_cross_entropy, schedule
from fastft.losses.parallel import Shard
from fastft.losses.reduction import coefficients
from losses import eager
from losses.cases import DTYPES, REDUCTIONS, Problem, problem

BUDGETS = [None, 700]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "supervised", lambda labels, ignore_index, valid: valid)
    monkeypatch.setattr(schedule, "ROW_ALIGNMENT", {"cpu": 16, "cuda": 16})


def padded(valid: Tensor, length: int) -> Tensor:
    return torch.cat([valid, valid.new_full((length - len(valid),), -1)])


def capacity(p: Problem, length: int) -> Tensor:
    return padded((p.y != -100).nonzero()[:, 0], length)


def same(p: Problem, valid: Tensor, options: dict[str, Any], backend: str) -> None:
    """As without `valid`, and what ignored rows hold stays out."""
    options = {"token_weight": p.eighths(len(p.y), high=3), "backend": backend, **options}
    expected = eager.evaluate(linear_cross_entropy, [p.x, p.w], p.y, options)
    x = p.x.where((p.y != -100)[:, None], torch.nan)
    got = eager.evaluate(linear_cross_entropy, [x, p.w], p.y, {**options, "valid": valid})
    tolerance = {} if p.x.dtype in (torch.float32, torch.float64) else {"rtol": 0.02, "atol": 2e-3}
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("length", [24, 31])
def test_padded(length: int, share: float, budget: int | None, reduction: str, backend: str) -> None:
    p = problem(24, 19, 37, share=share)
    same(p, capacity(p, length), {"reduction": reduction, "memory_budget": budget}, backend)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("length", [24, 31])
def test_trusted(
    length: int, share: float, budget: int | None, reduction: str, dtype: torch.dtype, backend: str,
    takes: Callable[..., None],
) -> None:  # fmt: skip
    takes(dtype)
    p = problem(24, 19, 37, dtype, share)
    same(p, capacity(p, length), {"reduction": reduction, "memory_budget": budget}, backend)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_trusted_with_ignored_tokens_among_them(budget: int | None, reduction: str, backend: str) -> None:
    p = problem(24, 19, 37, share=0.5)
    same(p, torch.arange(24), {"reduction": reduction, "memory_budget": budget}, backend)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_double_backward(reduction: str, backend: str) -> None:
    p = problem(24, 19, 37, torch.float32, 0.5)
    x = p.x.where((p.y != -100)[:, None], torch.nan).requires_grad_()
    found = []
    for given in ({}, {"valid": capacity(p, 31)}):
        loss = linear_cross_entropy(x, p.w, p.y, reduction=reduction, backend=backend, **given)
        (dx,) = torch.autograd.grad((loss * loss).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), x)[0])
    assert found[0].any()
    torch.testing.assert_close(*found)


class Looks(TorchDispatchMode):
    """Fails where the CPU would wait for a GPU: a number read, a shape that follows from data."""

    WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in self.WAITING, f"{func} synchronises"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("budget", [1 << 20, 700])
def test_trusted_is_not_looked_at(budget: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(24, 19, 37, share=0.5)
    valid = capacity(p, 31)
    labels = schedule.at(p.y, valid, -100)
    rows, q = coefficients(
        labels, 37, torch.float32, weight=None, token_weight=None, ignore_index=-100, label_smoothing=0.1, z_loss=0.0,
        reduction="mean", num_items=None,
    )  # fmt: skip
    x, w = p.x.requires_grad_(), p.w.requires_grad_()
    plan = schedule.plan(x, w, None, len(valid), Shard("", 0, 37), budget=budget, reduced=True)
    assert plan.mode == ("store" if budget > 700 else "grads")
    monkeypatch.setattr(arguments, "targets_in_range", lambda *_: None)  # not done on a GPU
    with torch.no_grad(), Looks():
        schedule.run(x, w, None, labels, rows, q, valid, 1.0, 0.0, -100, True, plan, backend)


def test_minus_one_within_is_refused() -> None:
    p = problem(24, 19, 37)
    for valid in ([-1, 3, 5], [3, -1, 5, -1], [3, 5, 24], [5, 3, -1], [3, 3, -1], [-2, 3]):
        with pytest.raises(ValueError, match="must ascend, each position once, within the 24 positions"):
            linear_cross_entropy(p.x, p.w, p.y, valid=torch.tensor(valid))
