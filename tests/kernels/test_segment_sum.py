"""The contract of a `segment_sum` kernel: sums of rows by segment, in order, the same bits each time."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from conftest import device_of
from torch import Tensor

from fastft import dispatch

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def usable(backend: str, dtype: torch.dtype = torch.float32) -> ModuleType | None:
    module, _ = dispatch.load("segment_sum", backend)
    fits = module is not None and module.why_not(torch.empty(1, 1, dtype=dtype, device=device_of(backend))) is None
    return module if fits else None


@pytest.fixture(params=[b for b in dispatch.BACKENDS if usable(b)])
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
