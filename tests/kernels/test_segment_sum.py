"""The contract of a `segment_sum` kernel: sums of rows by segment, in order, the same bits each time."""

import functools
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import device_of
from torch import Tensor

from fastft import dispatch
from kernels.interpreter import interpreted

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


INTERPRETED = SimpleNamespace(
    **{
        name: functools.partial(interpreted, "fastft.kernels.triton.segment_sum", name)
        for name in ("why_not", "segment_sum")
    }
)


def usable(backend: str, dtype: torch.dtype = torch.float32) -> Any:
    module: Any = INTERPRETED if backend == "interpreted triton" else dispatch.load("segment_sum", backend)[0]
    fits = module is not None and module.why_not(torch.empty(1, 1, dtype=dtype, device=device_of(backend))) is None
    return module if fits else None


BACKENDS = [b for b in dispatch.BACKENDS if usable(b)] + ["interpreted triton"] * (find_spec("triton") is not None)


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> Iterator[str]:
    with device_of(request.param):
        yield request.param


def problem(n: int, width: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + width)
    values = torch.randn(n, width, generator=g, device="cpu").to(dtype).to(torch.get_default_device())
    ids = torch.randint(rows, (n,), generator=g, device="cpu").to(torch.get_default_device())
    ids, order = ids.sort(stable=True)
    counts = torch.unique_consecutive(ids, return_counts=True)[1]
    return values, order, counts.cumsum(0), torch.repeat_interleave(counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "width", "rows"), [(0, 5, 3), (1, 1, 1), (100, 7, 1), (300, 64, 40), (257, 1000, 300)])
def test_sums(n: int, width: int, rows: int, dtype: torch.dtype, backend_name: str) -> None:
    kernel = usable(backend_name, dtype)
    if kernel is None:
        pytest.skip(f"{backend_name} has no {dtype}")
    values, order, ends, group = problem(n, width, rows, dtype)
    got = kernel.segment_sum(values, order, ends)
    wide = torch.promote_types(dtype, torch.float32)
    assert got.dtype == wide
    expected = torch.zeros(len(ends), width, dtype=torch.float64).index_add_(0, group, values[order].double())
    bound = torch.zeros_like(expected).index_add_(0, group, values[order].double().abs())
    assert ((got.double() - expected).abs() <= bound * n * torch.finfo(wide).eps).all()
    assert torch.equal(got, kernel.segment_sum(values, order, ends))


def test_strided_values(backend_name: str) -> None:
    kernel = usable(backend_name)
    assert kernel is not None
    values, order, ends, _ = problem(50, 12, 9, torch.float32)
    wider = torch.full((50, 20), torch.nan)
    wider[:, :12] = values
    for view in (wider[:, :12], values.t().contiguous().t()):
        assert torch.equal(kernel.segment_sum(view, order, ends), kernel.segment_sum(values, order, ends))


@pytest.mark.parametrize("lengths", [[1, 32, 1], [31, 33, 32, 64, 1, 65], [1, 1, 300, 1], [129], [1] * 70])
def test_segments_that_end_anywhere(lengths: list[int], backend_name: str) -> None:
    """Around the lengths and positions at which kernels cut segments; sums of small integers are exact."""
    kernel = usable(backend_name)
    g = torch.Generator().manual_seed(len(lengths))
    values = torch.randint(-9, 10, (sum(lengths), 3), generator=g, device="cpu").to(torch.get_default_device()).float()
    order = torch.randperm(sum(lengths), generator=g, device="cpu").to(values.device)
    got = kernel.segment_sum(values, order, torch.tensor(lengths).cumsum(0))
    assert torch.equal(got, torch.stack([part.sum(0) for part in values[order].split(lengths)]))
