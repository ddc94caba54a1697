"""csrc/cuda/grouping on the CPU, over a sort in CUB's place: what the reference gives, for ids of any kind."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from csrc.shimmed import SCHEDULES, Shimmed
from fastft.kernels.reference import grouping as reference

TILE = 2048  # sorted pairs per block
BLOCK_SORT = 500  # pairs that the sort in CUB's place takes in one pass
PROBLEMS = st.integers(1, 1 << 32).flatmap(
    lambda rows: st.tuples(st.just(rows), st.lists(st.integers(0, rows - 1), max_size=BLOCK_SORT + 100))
)


def check(shim: Shimmed, ids: Tensor, rows: int) -> None:
    before = ids.clone()
    got, want = shim.grouping.grouped(ids, rows), reference.grouped(ids, rows)
    assert torch.equal(ids, before)
    for name, mine, theirs in zip(("touched", "order", "ends"), got, want, strict=True):
        assert mine.dtype == torch.int64
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("rows", [1, 2, 3, 256, 257, 50257, 65536, 65537, 1 << 31, 1 << 32])
@pytest.mark.parametrize("n", [1, 2, 31, 255, 257, BLOCK_SORT + 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 77])
def test_positions_by_id(n: int, rows: int, shim: Shimmed) -> None:
    """Row counts around powers of two, of which ids have one bit more or less; the last row and the first are there."""
    ids = torch.randint(rows, (n,), generator=torch.Generator().manual_seed(n))
    ids[::3] = rows - 1
    ids[1::5] = 0
    shim.schedule = SCHEDULES[n % 4]
    check(shim, ids, rows)


@pytest.mark.parametrize("n", [1, TILE, 2 * TILE + 5])
def test_one_id_everywhere_and_each_id_once(n: int, shim: Shimmed) -> None:
    check(shim, torch.full((n,), n - 1), n)
    check(shim, torch.zeros(n, dtype=torch.int64), n)
    check(shim, torch.arange(n), n)
    check(shim, torch.arange(n - 1, -1, -1), n)


def test_groups_that_end_where_tiles_do(shim: Shimmed) -> None:
    for shift in (-1, 0, 1):
        check(shim, torch.arange(TILE - shift, 3 * TILE - shift) // TILE, 4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=PROBLEMS)
def test_any_ids(shim: Shimmed, problem: tuple[int, list[int]]) -> None:
    rows, ids = problem
    check(shim, torch.tensor(ids, dtype=torch.int64), rows)


def test_every_schedule_gives_the_same(shim: Shimmed) -> None:
    ids = torch.randint(300, (3 * TILE,), generator=torch.Generator().manual_seed(0))
    for shim.schedule in SCHEDULES:
        check(shim, ids, 300)


def test_strided_ids(shim: Shimmed) -> None:
    ids = torch.randint(90, (40, 31), generator=torch.Generator().manual_seed(0))
    check(shim, ids[:, 3], 90)
    check(shim, ids.T.reshape(-1)[1::2], 90)
    check(shim, torch.tensor([7]).expand(60), 90)


def test_nothing_to_group(shim: Shimmed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is launched, nothing waited for."""
    monkeypatch.setattr(shim.grouping, "launched", None)
    for rows in (0, 1, 90):
        check(shim, torch.zeros(0, dtype=torch.int64), rows)


@pytest.mark.parametrize("n", [1, BLOCK_SORT + 1, TILE + 1])
def test_it_keeps_to_its_scratch(n: int, shim: Shimmed) -> None:
    """And takes all of it: with less the sort is refused."""
    ids, size = torch.arange(n) % 7, shim.native.grouping_scratch(n, 3)

    def run(scratch: Tensor, given: int) -> Tensor:
        out = torch.full((3 * n + 2,), -1)
        parts = [part.data_ptr() for part in out.split((n, n, n, 1, 1))[:4]]
        shim.native.group(n, ids.data_ptr(), 3, scratch.data_ptr(), given, *parts, 0)
        return out

    scratch = torch.full((size + 64,), 77, dtype=torch.uint8)
    out = run(scratch, size)
    assert (scratch[size:] == 77).all()
    different = min(n, 7)
    assert out[3 * n :].tolist() == [different, -1]
    assert (out[different:n] == -1).all()
    assert (out[2 * n + different : 3 * n] == -1).all()
    with pytest.raises(RuntimeError, match="group: too little storage"):
        run(scratch, size - 1)


def test_what_it_does_not_take(shim: Shimmed) -> None:
    why_not, ids = shim.grouping.why_not, torch.tensor([1])
    assert why_not(ids.int(), 5) == "dtype is torch.int32; expected torch.int64"
    assert why_not(ids, (1 << 32) + 1).startswith("1 ids of 4294967297; expected")
    assert why_not(ids.expand(1 << 31), 5).startswith("2147483648 ids of 5; expected")
    assert why_not(ids.expand((1 << 31) - 1), 1 << 32) == "device is cpu"
