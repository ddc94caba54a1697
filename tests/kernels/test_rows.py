"""The contract of a `rows` kernel: positions of supervised tokens, rows gathered and scattered by them, bit for bit."""

import functools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import device_of
from torch import Tensor

from fastft import dispatch
from kernels.interpreter import interpreted

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def loaded(backend: str) -> ModuleType | None:
    module, _ = dispatch.load("rows", backend)
    usable = module is not None and module.why_not(torch.empty(1, 1, device=device_of(backend))) is None
    return module if usable else None


INTERPRETED = SimpleNamespace(
    **{
        name: functools.partial(interpreted, "fastft.kernels.triton.rows", name)
        for name in ("compact", "gather_rows", "scatter_rows")
    }
)
KERNELS = {name: module for name in dispatch.BACKENDS if (module := loaded(name))}
if find_spec("triton"):
    KERNELS["interpreted triton"] = INTERPRETED  # type: ignore[assignment]


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.gpu if device_of(name).type == "cuda" else ()) for name in KERNELS]
)
def rows(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Each module, with its device as the default one."""
    with device_of(request.param):
        yield KERNELS[request.param]


def targets(n: int, share: float, ignore_index: int = -100) -> Tensor:
    """`share` of n targets is ignored."""
    g = torch.Generator().manual_seed(n)
    target = torch.randint(50, (n,), generator=g, device="cpu")
    target[torch.rand(n, generator=g, device="cpu") < share] = ignore_index
    return target.to(torch.get_default_device())


@pytest.mark.parametrize("n", [0, 1, 7, 1024, 1025, 5000])
@pytest.mark.parametrize("share", [0.0, 0.85, 1.0])
def test_compact(n: int, share: float, rows: ModuleType) -> None:
    target = targets(n, share)
    expected = (target.cpu() != -100).nonzero()[:, 0]
    valid = rows.compact(target, -100)
    assert valid.dtype == torch.int64
    assert valid.tolist() == expected.tolist()
    for capacity in (0, len(expected) // 2, len(expected), len(expected) + 1, n + 1500):
        valid = rows.compact(target, -100, capacity)
        assert valid.shape == (capacity,)
        assert valid.tolist() == [*expected[:capacity].tolist(), *[-1] * (capacity - len(expected))]


def test_compact_by_any_index_of_a_view(rows: ModuleType) -> None:
    target = targets(300, 0.5, ignore_index=3)
    pair = torch.stack([target, target], 1)
    assert torch.equal(rows.compact(pair[:, 1], 3), rows.compact(target, 3))
    assert torch.equal(rows.compact(pair[:, 1], 3, 300), rows.compact(target, 3, 300))


def test_compact_of_more_blocks_than_a_block_has_tokens(rows: ModuleType) -> None:
    if rows is INTERPRETED:
        pytest.skip("interpreted triton: a million tokens take minutes")
    target = targets(1_100_000, 0.85)
    expected = (target != -100).nonzero()[:, 0]
    assert torch.equal(rows.compact(target, -100, len(expected) + 2)[:-2], expected)


def matrix(n: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=g, device="cpu").to(torch.get_default_device(), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 64, 1500])
def test_gather_and_scatter(dtype: torch.dtype, width: int, rows: ModuleType) -> None:
    """NaN in rows that are not asked for is not seen; scattering what was gathered leaves the rest zero."""
    n = 70
    valid = rows.compact(targets(n, 0.6), -100)
    x = matrix(n, width, dtype)
    kept = torch.zeros(n, dtype=torch.bool).index_fill(0, valid, True)
    x[~kept] = torch.nan
    gathered = rows.gather_rows(x, valid)
    assert gathered.dtype == dtype
    assert torch.equal(gathered, x[valid])
    assert torch.equal(rows.scatter_rows(gathered, valid, n), torch.where(kept[:, None], x, 0))


def test_padding_gathers_zeros_and_scatters_nothing(rows: ModuleType) -> None:
    """-1 entries, as `compact` with a capacity leaves; the rows that they stand for may hold anything."""
    target = targets(40, 0.7)
    valid, padded = rows.compact(target, -100), rows.compact(target, -100, 40)
    x, k = matrix(40, 33), len(valid)
    gathered = rows.gather_rows(x, padded)
    assert torch.equal(gathered[:k], x[valid])
    assert (gathered[k:] == 0).all()
    gathered[k:] = torch.nan
    assert torch.equal(rows.scatter_rows(gathered, padded, 40), rows.scatter_rows(gathered[:k], valid, 40))


@pytest.mark.parametrize("positions", [[], [0], [8], [0, 1, 2, 3, 4, 5, 6, 7, 8], [-1, -1], [3, -1, -1]])
def test_first_last_all_and_none(positions: list[int], rows: ModuleType) -> None:
    valid = torch.tensor(positions, dtype=torch.int64)
    x = matrix(len(positions), 5)
    expected = torch.zeros(9, 5)
    for k, position in enumerate(positions):
        if position >= 0:
            expected[position] = x[k]
    assert torch.equal(rows.scatter_rows(x, valid, 9), expected)


@pytest.mark.parametrize(("n", "width"), [(0, 5), (4, 0), (0, 0)])
def test_nothing_to_do(n: int, width: int, rows: ModuleType) -> None:
    nowhere = torch.empty(0, dtype=torch.int64)
    assert rows.gather_rows(matrix(n, width), nowhere).shape == (0, width)
    assert rows.scatter_rows(matrix(0, width), nowhere, n).shape == (n, width)


VIEWS = {
    "columns": lambda x: x[:, 3:20],
    "every second row": lambda x: x[::2],
    "transposed": lambda x: x.t(),
    "one row again and again": lambda x: x[:1].expand(30, -1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views(view: Callable[[Tensor], Tensor], rows: ModuleType) -> None:
    x = view(matrix(40, 40))
    valid = torch.tensor([1, 5, 6, len(x) - 1])
    assert torch.equal(rows.gather_rows(x, valid), x[valid])
    part = x[:4]
    assert torch.equal(rows.scatter_rows(part, valid, 50)[valid], part)
    twice = torch.stack([valid, valid], 1)[:, 0]
    assert torch.equal(rows.gather_rows(x, twice), x[valid])
