"""The contract of a `grouping` kernel: positions by id, both ascending."""

from types import ModuleType

import pytest
import torch
from conftest import device_of

from fastft import dispatch


def usable(backend: str) -> ModuleType | None:
    module, _ = dispatch.load("grouping", backend)
    fits = module is not None and module.why_not(torch.tensor([0], device=device_of(backend)), 1) is None
    return module if fits else None


BACKENDS = [b for b in dispatch.BACKENDS if usable(b)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2, 7, 2048, 2049, 1 << 20, 1 << 32])
@pytest.mark.parametrize("n", [0, 1, 2, 300, 5000])
def test_positions_by_id(n: int, rows: int, backend: str) -> None:
    kernel = usable(backend)
    assert kernel is not None
    ids = torch.randint(rows, (n,), generator=torch.Generator().manual_seed(n))
    ids[::3] = rows - 1
    ids = ids.to(device_of(backend))
    assert kernel.why_not(ids, rows) is None
    before = ids.clone()
    touched, order, ends = kernel.grouped(ids, rows)
    assert torch.equal(ids, before)
    want, inverse, counts = ids.unique(return_inverse=True, return_counts=True)
    assert torch.equal(touched, want)
    assert torch.equal(order, inverse.sort(stable=True)[1])
    assert torch.equal(ends, counts.cumsum(0))
    assert {t.dtype for t in (touched, order, ends)} == {torch.int64}


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_ids(backend: str) -> None:
    kernel = usable(backend)
    assert kernel is not None
    ids = torch.tensor([5, 0, 3, 0, 5, 0], device=device_of(backend))[::2]
    assert [t.tolist() for t in kernel.grouped(ids, 6)] == [[3, 5], [1, 0, 2], [1, 3]]


def test_more_rows_than_the_cpu_kernel_tells_apart() -> None:
    kernel, _ = dispatch.load("grouping", "cpu")
    assert kernel is not None
    assert kernel.why_not(torch.tensor([1]), (1 << 32) + 1)
