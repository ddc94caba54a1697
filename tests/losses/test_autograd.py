"""The two losses as citizens of autograd: checks against finite differences, repeated and double backward, opcheck."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastft.losses import cross_entropy, gradients, linear_cross_entropy, schedule
from fastft.losses.reduction import coefficients
from losses.cases import OPTIONS, REDUCTIONS, problem, with_ignored

CHECKED = ["plain", "weight_and_smoothing", "scale_and_softcap", "z_loss", "token_weight", "everything"]


def closures(option: str, reduction: str, **more: Any) -> list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """(function of the differentiable tensors, those tensors) in fp64, of both losses."""
    p = problem(4, 2, 5, torch.float64, 0.25, spread=1.0)
    options = {**OPTIONS[option](p), "reduction": reduction}
    y = with_ignored(p.y, options)
    bias = p.eighths(5).double()
    tensors = tuple(t.requires_grad_() for t in (p.x, p.w, bias))
    return [
        (lambda z: cross_entropy(z, y, **options), (p.z.requires_grad_(),)),
        (lambda x, w, b: linear_cross_entropy(x, w, y, linear_bias=b, **options, **more), tensors),
    ]


@pytest.mark.parametrize("option", CHECKED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 90])
def test_gradcheck(option: str, reduction: str, budget: int | None) -> None:
    for function, tensors in closures(option, reduction, memory_budget=budget):
        assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("option", ["plain", "everything"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 90])
def test_gradgradcheck(option: str, reduction: str, budget: int | None) -> None:
    for function, tensors in closures(option, reduction, memory_budget=budget):
        assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 100])
def test_double_backward_with_parts_frozen_and_rows_ignored(reduction: str, budget: int | None) -> None:
    """A gradient penalty, as torch's own operations give it; NaN in ignored rows stays out of this too."""
    p = problem(6, 3, 7, torch.float64, 0.5)
    keep = p.y != -100
    for needs in itertools.product([False, True], repeat=2):
        if not any(needs):
            continue
        penalties = []
        for loss, x in (
            (lambda x, w: linear_cross_entropy(x, w, p.y, reduction=reduction, memory_budget=budget),
             p.x.masked_fill(~keep[:, None], torch.nan)),
            (lambda x, w: F.cross_entropy(x @ w.t(), p.y, reduction=reduction), p.x),
        ):  # fmt: skip
            leaves = [t.clone().requires_grad_(need) for t, need in zip((x, p.w), needs, strict=True)]
            wanted = [t for t in leaves if t.requires_grad]
            grads = torch.autograd.grad(loss(*leaves).sum() ** 2, wanted, create_graph=True)
            penalties.append(torch.autograd.grad(sum(g.square().sum() for g in grads), wanted))
        for got, expected in zip(*penalties, strict=True):
            torch.testing.assert_close(got, expected)


def functions(
    budget: int | None, backend: str, dtype: torch.dtype, reduction: str
) -> list[tuple[Any, tuple[Tensor, ...]]]:
    p = problem(24, 19, 37, dtype, 0.4)
    bias = p.eighths(37).to(dtype)
    options = {"reduction": reduction, "backend": backend, "label_smoothing": 0.1}
    return [
        (lambda z: cross_entropy(z, p.y, **options), (p.z.requires_grad_(),)),
        (lambda x, w, b: linear_cross_entropy(x, w, p.y, linear_bias=b, memory_budget=budget, **options),
         tuple(t.requires_grad_() for t in (p.x, p.w, bias))),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 700])
def test_second_backward_through_a_retained_graph(
    dtype: torch.dtype, reduction: str, budget: int | None, backend: str, takes: Callable[..., None]
) -> None:
    """Equal to the first, also after one with another upstream: nothing saved is changed in place."""
    takes(dtype)
    for function, tensors in functions(budget, backend, dtype, reduction):
        loss = function(*tensors)
        first = torch.autograd.grad(loss.sum(), tensors, retain_graph=True)
        torch.autograd.grad(loss.sum() * -7, tensors, retain_graph=True)
        again = torch.autograd.grad(loss.sum(), tensors)
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 700])
def test_gradients_belong_to_the_caller(reduction: str, budget: int | None, backend: str) -> None:
    """Clipping them in place does not reach what a retained graph has saved."""
    for function, tensors in functions(budget, backend, torch.float32, reduction):
        loss = function(*tensors)
        first = torch.autograd.grad(loss.sum(), tensors, retain_graph=True)
        kept = [g.clone() for g in first]
        for g in first:
            g.mul_(0.5)
        for a, b in zip(kept, torch.autograd.grad(loss.sum(), tensors), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 700])
def test_accumulates_into_grad(reduction: str, budget: int | None, backend: str) -> None:
    for function, tensors in functions(budget, backend, torch.float32, reduction):
        single = torch.autograd.grad(function(*tensors).sum(), tensors)
        for _ in range(2):
            function(*tensors).sum().backward()
        for t, g in zip(tensors, single, strict=True):
            assert torch.equal(t.grad, g + g)


@pytest.mark.parametrize("budget", [None, 700])
def test_backward_after_the_inputs_changed_is_refused(budget: int | None, backend: str) -> None:
    """The head may not change between forward and backward unseen, as it would with eager operations."""
    function, tensors = functions(None, backend, torch.float32, "mean")[1]
    loss = function(*tensors)
    with torch.no_grad():
        tensors[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_backward_without_retain_is_refused(backend: str) -> None:
    for function, tensors in functions(None, backend, torch.float32, "mean"):
        loss = function(*tensors)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


def test_gradient_flows_into_a_graph_before_the_loss(backend: str) -> None:
    p = problem(24, 19, 37, share=0.4)
    projection = (p.x.t() @ p.x / 24).requires_grad_()
    loss = linear_cross_entropy(p.x @ projection, p.w, p.y, backend=backend)
    expected = F.cross_entropy(p.x @ projection @ p.w.t(), p.y)
    for a, b in zip(*(torch.autograd.grad(t, projection) for t in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_tied_weights_get_both_gradients(backend: str) -> None:
    p = problem(24, 19, 37, share=0.4)
    w = p.w.requires_grad_()
    ids = torch.arange(24)
    loss = linear_cross_entropy(w[ids], w, p.y, backend=backend)
    expected = F.cross_entropy(w[ids] @ w.t(), p.y)
    for a, b in zip(*(torch.autograd.grad(t, w) for t in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b)


OPCHECK = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("reduced", [True, False])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_opcheck_cross_entropy(reduced: bool, softcap: float, backend: str) -> None:
    p = problem(6, 1, 11, share=0.3)
    rows, q = coefficients(
        p.y, 11, torch.float32, weight=p.eighths(11, low=1), token_weight=None, ignore_index=-100, label_smoothing=0.1,
        z_loss=0.0, reduction="mean" if reduced else "none", num_items=None,
    )  # fmt: skip
    args = (p.z.requires_grad_(), p.y, rows, q if softcap else None, 1.5, softcap, -100, reduced, reduced, backend)
    torch.library.opcheck(torch.ops.fastft.cross_entropy.default, args, test_utils=OPCHECK)


@pytest.mark.parametrize("mode", ["stats", "store", "grads"])
@pytest.mark.parametrize(("with_valid", "dtype"), [(False, torch.float32), (True, torch.float16)], ids=str)
def test_opcheck_linear_cross_entropy(
    mode: str, with_valid: bool, dtype: torch.dtype, backend: str, takes: Callable[..., None]
) -> None:
    takes(dtype)
    p = problem(6, 5, 11, dtype, 0.3)
    needs = mode != "stats"
    x, w, bias = (t.requires_grad_(needs) for t in (p.x, p.w, p.eighths(11).to(dtype)))
    valid = (p.y != -100).nonzero()[:, 0] if with_valid else None
    labels = p.y if valid is None else p.y[valid]
    rows, q = coefficients(
        labels, 11, torch.float32, weight=None, token_weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
        reduction="mean", num_items=None,
    )  # fmt: skip
    budget = 1 << 20 if mode == "store" else 100
    plan = schedule.Plan(mode, needs, needs, needs, mode != "store", budget, "", 0, 11)
    args = (x, w, bias, labels, rows, q, valid, 1.0, 0.0, -100, mode != "stats", *plan, backend)
    torch.library.opcheck(torch.ops.fastft.linear_cross_entropy.default, args, test_utils=OPCHECK)


@pytest.mark.parametrize("budget", [None, 700])
def test_the_heads_gradient_is_not_copied_into_grad(budget: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """V x D numbers: the buffer that the GEMM wrote becomes `.grad`."""
    p, made = problem(24, 19, 37), []
    finish = gradients.Gradients.finish

    def noted(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        result = finish(*args)
        made.append(result[1].data_ptr())
        return result

    monkeypatch.setattr(gradients.Gradients, "finish", noted)
    w = p.w.requires_grad_()
    linear_cross_entropy(p.x, w, p.y, memory_budget=budget, backend="cpu").backward()
    assert w.grad is not None
    assert w.grad.data_ptr() == made[-1]
