"""The gradient of chosen rows of a frozen head: that of a whole head at these rows, however the logits are reached."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerance import no_worse
from torch import Tensor

from fastft.hf.lazy_logits import LazyLogits, lazy_linear
from fastft.losses import linear_cross_entropy, schedule
from fastft.losses.head_rows import head_rows
from fastft.losses.reduction import coefficients
from losses.cases import DTYPES, OPTIONS, Problem, problem
from losses.test_autograd import OPCHECK

IDS = [30, 3, 17]


def leaves(p: Problem, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, frozen w, bias, ids and rows."""
    ids = torch.tensor(IDS)
    master = torch.promote_types(dtype or p.w.dtype, torch.float32)
    x, w, bias = (t.to(dtype or p.w.dtype) for t in (p.x, p.w, p.eighths(len(p.w))))
    return x.detach().requires_grad_(), w, bias.requires_grad_(), ids, w[ids].to(master).requires_grad_()


def grads(loss: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [1 << 20, 300, 3000], ids=["whole", "by row", "by chunk"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients(
    dtype: torch.dtype, budget: int, reduction: str, backend: str, takes: Callable[[torch.dtype], None]
) -> None:
    takes(dtype)
    p = problem(40, 19, 37, dtype, share=0.5)
    x, w, bias, ids, rows = leaves(p)
    options = {"reduction": reduction, "softcap": 5.0, "label_smoothing": 0.1, "memory_budget": budget}
    loss = linear_cross_entropy(x, w, p.y, linear_bias=bias, linear_rows=(ids, rows), backend=backend, **options)
    got = grads(loss, x, bias, rows)
    whole = w.clone().requires_grad_()
    want = grads(linear_cross_entropy(x, whole, p.y, linear_bias=bias, backend=backend, **options), x, bias, whole)
    truths = [t.detach().double().requires_grad_() for t in (x, bias, whole)]
    logits = 5 * torch.tanh(F.linear(truths[0], truths[2], truths[1]) / 5)
    truth = grads(F.cross_entropy(logits, p.y, reduction=reduction, label_smoothing=0.1), *truths)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert got[2].shape == (3, 19)
    assert got[2].dtype == rows.dtype
    no_worse("rows", got[2], want[2][ids], truth[2][ids], dtype)


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    p = problem(24, 5, 37, share=0.5)
    x, w, _, ids, rows = leaves(p)
    options = OPTIONS[name](p)
    p = p._replace(y=torch.where(p.y == -100, options.get("ignore_index", -100), p.y))
    whole = w.clone().requires_grad_()
    want = grads(linear_cross_entropy(x, whole, p.y, **options), whole)[0][ids]
    got = grads(linear_cross_entropy(x, w, p.y, linear_rows=(ids, rows), **options), rows)[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_rows_alone_and_no_supervised_token() -> None:
    p = problem(24, 5, 37)
    _, w, _, ids, rows = leaves(p)
    whole = w.clone().requires_grad_()
    want = grads(F.cross_entropy(p.x @ whole.t(), p.y), whole)[0][ids]
    torch.testing.assert_close(grads(linear_cross_entropy(p.x, w, p.y, linear_rows=(ids, rows)), rows)[0], want)
    loss = linear_cross_entropy(p.x, w, torch.full_like(p.y, -100), linear_rows=(ids, rows))
    assert (grads(loss, rows)[0] == 0).all()


def test_double_backward_and_class_probabilities() -> None:
    p = problem(8, 5, 37, torch.float64)
    x, w, _, ids, rows = leaves(p)
    probabilities = torch.softmax(p.z, 1)

    def of_rows(x: Tensor, rows: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            table = w.index_copy(0, ids, rows)  # it holds what the rows are
        return linear_cross_entropy(x, table, target, linear_rows=(ids, rows), backend="reference")

    for target in (p.y, probabilities):
        assert torch.autograd.gradcheck(lambda x, rows, y=target: of_rows(x, rows, y), (x, rows))
        assert torch.autograd.gradgradcheck(lambda x, rows, y=target: of_rows(x, rows, y), (x, rows))


@pytest.mark.parametrize("mode", ["store", "grads"])
def test_opcheck(mode: str) -> None:
    p = problem(6, 5, 37, share=0.3)
    x, w, bias, ids, rows = leaves(p)
    a, q = coefficients(
        p.y, 37, torch.float32, weight=None, token_weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
        reduction="mean", num_items=None,
    )  # fmt: skip
    plan = schedule.Plan(mode, True, True, True, mode != "store", 1 << 20 if mode == "store" else 100, "", 0, 37)
    valid = (p.y != -100).nonzero()[:, 0] if mode == "store" else None
    labels, a = (p.y, a) if valid is None else (p.y[valid], a[valid])
    args = (x, w, bias, labels, a, q, valid, 1.0, 0.0, -100, True, *plan, "auto", rows, ids)
    torch.library.opcheck(torch.ops.fastft.linear_cross_entropy.default, args, test_utils=OPCHECK)


def test_compiled() -> None:
    p = problem(24, 5, 37, share=0.5)
    x, w, _, ids, rows = leaves(p)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    want = grads(linear_cross_entropy(x, w, p.y, linear_rows=(ids, rows)), x, rows)
    got = grads(compiled(x, w, p.y, linear_rows=(ids, rows)), x, rows)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_logits_that_something_reads() -> None:
    """`head_rows` of ordinary logits: same memory, writable; a second derivative is refused."""
    p = problem(8, 5, 37, torch.float64)
    x, w, bias, ids, rows = leaves(p)
    logits = F.linear(x, w, bias)
    same = head_rows(logits, x, rows, ids)
    assert same.data_ptr() == logits.data_ptr()
    same *= 2

    def of_rows(x: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            table = w.index_copy(0, ids, rows)
        return head_rows(F.linear(x, table, bias), x, rows, ids).square()

    assert torch.autograd.gradcheck(of_rows, (x, rows))
    first = torch.autograd.grad(of_rows(x, rows).sum(), rows, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


LAZY: dict[str, tuple[Callable[[Any], Tensor], bool]] = {
    "as they are": (lambda z: z, True),
    "scaled and capped": (lambda z: torch.tanh(z * 0.5 / 3.0) * 3.0, True),
    "positions": (lambda z: z[::2].float(), True),
    "part of the vocabulary": (lambda z: z[:, :36], False),
    "read first": (lambda z: z + 0 * z.sum(), False),
}


@pytest.mark.parametrize("name", LAZY)
def test_lazy_logits(name: str) -> None:
    """Fused where it can be, else right all the same."""
    change, fused = LAZY[name]
    p = problem(12, 5, 37)
    x, w, bias, ids, rows = leaves(p)
    y = p.y[::2] if name == "positions" else p.y.clamp(max=35)
    whole = w.clone().requires_grad_()
    want = grads(F.cross_entropy(change(F.linear(x, whole, bias)), y), x, bias, whole)
    lazy = head_rows(lazy_linear(x, w, bias), x, rows, ids)
    assert type(lazy) is LazyLogits
    changed = change(lazy)
    got = grads(F.cross_entropy(changed, y), x, bias, rows)
    assert (not lazy.is_materialized) == fused
    for a, b in zip(got, (want[0], want[1], want[2][ids]), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_wrong() -> None:
    p = problem(8, 5, 37)
    x, w, _, ids, rows = leaves(p)

    def call(ids: Any, rows: Any, w: Tensor = w) -> None:
        linear_cross_entropy(x, w, p.y, linear_rows=(ids, rows))

    with pytest.raises(TypeError, match=r"linear_rows\[0\] is list; expected the rows' ids, a 1-d int64 Tensor"):
        call(IDS, rows)
    with pytest.raises(TypeError, match=r"linear_rows\[0\] is torch.int32 \(3,\)"):
        call(ids.int(), rows)
    with pytest.raises(TypeError, match=r"linear_rows\[1\] has dtype torch.int64"):
        call(ids, ids)
    with pytest.raises(
        ValueError, match=r"linear_rows\[1\] has shape \(3, 5\); expected \(2, 5\), one row of linear_we"
    ):
        call(ids[:2], rows)
    with pytest.raises(ValueError, match=r"linear_weight requires grad.*: freeze linear_weight"):
        call(ids, rows, w.clone().requires_grad_())
