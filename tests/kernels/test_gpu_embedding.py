"""What only a GPU shows of the kernels of embedding rows: many rows, the same bits twice, no waiting.

The contracts in test_segment_sum.py and test_row_update.py run there too. For compute-sanitizer: -k "small".
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastft import dispatch
from fastft.kernels.reference import row_update as reference
from fastft.optim.adamw import Rule
from fastft.optim.table import Table
from kernels.test_cross_entropy import DTYPES
from kernels.test_gpu import module

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["triton", "cuda"])
def segments(request: pytest.FixtureRequest) -> ModuleType:
    return module("segment_sum", request.param)


@pytest.mark.parametrize(("n", "width", "dtype"), [
    (70, 5, torch.float32), (3000, 96, torch.float16), (20_000, 1000, torch.bfloat16), (20_000, 4096, torch.bfloat16),
])  # fmt: skip
def test_small_segment_sums(n: int, width: int, dtype: torch.dtype, segments: ModuleType) -> None:
    """Against fp64: half of the positions in one segment, as padding is, the others in short ones; twice, same bits."""
    g = torch.Generator("cuda").manual_seed(n)
    values = torch.randn(n, width, generator=g, device="cuda").to(dtype)
    ids = torch.randint(n, (n,), generator=g, device="cuda")
    ids, order = torch.where(ids < n // 2, n // 4, ids).sort(stable=True)
    counts = torch.unique_consecutive(ids, return_counts=True)[1]
    got = segments.segment_sum(values, order, counts.cumsum(0))
    group = torch.repeat_interleave(counts)
    expected = torch.zeros(len(counts), width, dtype=torch.float64, device="cuda")
    bound = torch.zeros_like(expected).index_add_(0, group, values[order].double().abs())
    expected.index_add_(0, group, values[order].double())
    assert ((got.double() - expected).abs() <= bound * 300 * torch.finfo(torch.float32).eps).all()
    assert torch.equal(got, segments.segment_sum(values, order, counts.cumsum(0)))


class Updated:
    """A table (3000, width) and its optimizer's state, on the GPU, after steps on random rows by `kernel`."""

    rule = Rule(0.9, 0.999, 1e-8, False, False)

    def __init__(self, kernel: ModuleType, dtype: torch.dtype, width: int, steps: int = 20) -> None:
        self.g, self.kernel = torch.Generator("cuda").manual_seed(0), kernel
        start = torch.randn(3000, width, generator=self.g, device="cuda").to(dtype)
        self.t = Table(start, self.rule, {}, "master", fast=True)
        for step in range(1, steps + 1):
            ids = self.rows()
            self.t.admit(ids)
            self.step(ids, torch.randn(len(ids), width, generator=self.g, device="cuda").to(dtype), step)

    def rows(self) -> Tensor:
        return torch.randint(2500, (700,), generator=self.g, device="cuda").unique()

    def read(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.kernel.read_rows(self.t, ids, self.rule, self.t.steps, self.t.leap(ids))
        return rows

    def step(self, ids: Tensor, grad: Tensor, step: int) -> None:
        leap = self.t.leap(ids)
        self.t.advance((1 - 1e-4, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** 0.5, 1e-2), self.rule)
        self.kernel.step_rows(self.t, ids, grad, self.rule, self.t.steps, leap)


def update_module(backend: str) -> ModuleType:
    loaded, why = dispatch.load("row_update", backend)
    if loaded is not None:
        why = loaded.why_not(
            Table(torch.zeros(1, 1, device="cuda"), Updated.rule, {}, "master", fast=True), Updated.rule
        )
    if why is not None:
        pytest.skip(f"{backend}: {why}")
    assert loaded is not None
    return loaded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [37, 1024, 3000])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_small_row_updates(backend: str, width: int, dtype: torch.dtype) -> None:
    """As the reference on the GPU; twice, for the same bits."""
    kernel, everything = update_module(backend), torch.arange(3000, device="cuda")
    got, again, want = (Updated(k, dtype, width) for k in (kernel, kernel, reference))  # type: ignore[arg-type]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.read(everything), want.read(everything), rtol=max(eps, 1e-5), atol=1e-5)
    for a, b, c in zip(got.t.buffers, again.t.buffers, want.t.buffers, strict=True):
        assert torch.equal(a[: got.t.used], b[: got.t.used])
        torch.testing.assert_close(a[: got.t.used], c[: got.t.used], rtol=1e-5, atol=1e-9)
    assert torch.equal(got.t.table, again.t.table)
    assert torch.equal(got.t.last, want.t.last)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_row_updates_wait_for_nothing(backend: str) -> None:
    """Reads and steps of admitted rows, the way of new steps' numbers to the device included."""
    u = Updated(update_module(backend), torch.bfloat16, 1024)
    ids, grad = u.rows(), torch.ones(700, 1024, dtype=torch.bfloat16, device="cuda")
    u.t.admit(ids)
    u.read(ids)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(21, 100):
            u.read(ids)
            u.step(ids, grad[: len(ids)], step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
