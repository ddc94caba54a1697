"""The products of backward: sums over chunks, the upstream gradient folded in, fp16's range."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastft.losses.gradients import FP16_ROOM, Gradients, column_sum, row_scale, spread
from losses.cases import Problem, problem

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
UPSTREAM: dict[str, Callable[[Problem], Tensor | float]] = {
    "one": lambda p: 1.0,
    "number": lambda p: -2.5,
    "scalar": lambda p: torch.tensor(3.0, dtype=p.x.dtype),
    "rows": lambda p: p.eighths(len(p.x), 1, low=-8).to(p.x.dtype),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("chunk", [40, 16, 3])
def test_sums_over_chunks(dtype: torch.dtype, upstream: str, chunk: int) -> None:
    p = problem(40, 7, 11, dtype)
    g = UPSTREAM[upstream](p)
    scale = p.eighths(40, 1, low=1) if dtype == torch.float16 else None  # what dz was divided by
    dz = p.z * g if isinstance(g, float) else p.z.double() * g.double()
    dz = dz.double() if scale is None else dz.double() * scale.double()
    grads = Gradients(p.x, p.w, (True, True, True), 40, -(-40 // chunk))
    for start in range(0, 40, chunk):
        part = slice(start, start + chunk)
        rows = g[part] if isinstance(g, Tensor) and g.dim() else g
        grads.add(p.z[part].clone(), p.x[part], part, None if scale is None else scale[part], rows)
    expected = dz @ p.w.double(), dz.t() @ p.x.double(), dz.sum(0)
    for name, got, truth in zip(("dx", "dw", "dbias"), grads.finish(None, 40, dtype), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), truth, rtol=0, atol=TOLERANCE[dtype] * float(truth.abs().max()), msg=f"{name} differs"
        )


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3])
def test_what_is_not_needed_is_empty(needs: tuple[bool, bool, bool]) -> None:
    p = problem(4, 7, 11)
    grads = Gradients(p.x, p.w, needs, 4, 1)
    grads.add(p.z, p.x, slice(0, 4), None)
    shapes = [tuple(t.shape) for t in grads.finish(None, 4, torch.float32)]
    full = [(4, 7), (11, 7), (11,)]
    assert shapes == [shape if need else (0,) for shape, need in zip(full, needs, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_rows_give_zeros(dtype: torch.dtype) -> None:
    p = problem(0, 7, 11, dtype)
    grads = Gradients(p.x, p.w, (True, True, True), 0, 1).finish(torch.zeros(0, dtype=torch.int64), 5, dtype)
    assert [tuple(t.shape) for t in grads] == [(5, 7), (11, 7), (11,)]
    assert all((t == 0).all() for t in grads)


def test_rows_go_to_their_positions() -> None:
    got = spread(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 3]), 5)
    assert got.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4], [0, 0]]


@pytest.mark.parametrize("rows", [1, 128, 300])
def test_column_sum(rows: int) -> None:
    """In at least fp32, with as many roundings as a tree has, not as many as there are rows."""
    p = problem(rows, 1, 17, torch.bfloat16)
    weights = p.eighths(rows, 1, low=-8).bfloat16()
    assert column_sum(p.z, 2.0).dtype == torch.float32
    torch.testing.assert_close(column_sum(p.z, 2.0).double(), 2 * p.z.double().sum(0), rtol=1e-5, atol=1e-5)
    expected = (p.z.double() * weights.double()).sum(0)
    torch.testing.assert_close(column_sum(p.z, weights).double(), expected, rtol=0.01, atol=0.01 * rows**0.5)


def test_only_fp16_is_scaled() -> None:
    rows = torch.rand(5, 3)
    assert all(row_scale(rows, dtype) is None for dtype in DTYPES if dtype != torch.float16)


@pytest.mark.parametrize("size", [1e-9, 1 / 65536, 1.0, 1e4])
@pytest.mark.parametrize("column", [0, 1])
def test_scaled_coefficients_fit_fp16(size: float, column: int) -> None:
    """Whatever a token's weight, dz / r fills fp16's range without leaving it, and r costs no digit."""
    rows = torch.zeros(100, 3)
    rows[:, column] = torch.linspace(-2, 2, 100) * size
    r = row_scale(rows, torch.float16)
    assert r is not None
    assert r.shape == (100, 1)
    assert (torch.frexp(r).mantissa == 0.5).all(), "not a power of two"
    scaled = (rows / r).abs().amax(1)
    assert (scaled <= FP16_ROOM).all()
    assert (scaled >= FP16_ROOM / 4).all()


def test_a_row_without_weight_has_a_finite_scale() -> None:
    r = row_scale(torch.zeros(3, 3), torch.float16)
    assert r is not None
    assert r.isfinite().all()
    assert (r > 0).all()
