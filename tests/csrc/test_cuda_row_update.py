"""csrc/cuda/row_update on the CPU: rows, state and what is left alone, against steps one by one in fp64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from csrc.shimmed import SCHEDULES, Shimmed
from fastft.kernels.reference import row_update as reference
from fastft.optim.adamw import Rule
from fastft.optim.leap import leap as leap_in_torch
from fastft.optim.table import Table

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS, STEPS = 23, 40
ADMITTED = torch.tensor([21, 0, 5, 7, 3, 11, 12, 2, 16])
WIDTHS = (1, 7, 8, 36, 130, 520, 1024)
BETAS = (0.9, 0.999)


def numbers(step: int) -> tuple[float, ...]:
    lr = 1e-2 * 0.5 ** (step / 20)
    return 1 - lr * 0.1, lr / (1 - BETAS[0] ** step), (1 - BETAS[1] ** step) ** 0.5, lr


def table(width: int, dtype: torch.dtype, eps: float = 1e-8, **options: Any) -> tuple[Table, Rule]:
    """Some rows have moments, of sizes from far below eps = 1e-2 to far above; each row has taken some of the steps."""
    g = torch.Generator().manual_seed(width)
    rule = Rule(*BETAS, eps, False, False)
    start = torch.randn(ROWS, width, generator=g)
    t = Table(start.to(dtype), rule, {}, options.get("rounding", "master"), fast=True)
    t.admit(ADMITTED)
    t.fill()
    m, v = t.buffers
    size = 10 ** (torch.rand(t.used, width, generator=g) * 6 - 5)
    m[: t.used] = torch.randn(t.used, width, generator=g) * size
    m[: t.used : 4, ::3] = 0
    v[: t.used] = size**2
    if t.master is not None:
        t.master[: t.used] += t.master[: t.used] * 1e-4 * torch.randn(t.used, width, generator=g)
    for step in range(1, STEPS + 1):
        t.advance(numbers(step))
    t.last[:] = torch.randint(STEPS + 1, (ROWS,), generator=g, dtype=torch.int32)
    t.last[:6] = torch.tensor([0, 1, STEPS - 1, STEPS, STEPS, STEPS - 2])
    return t, rule


def in_double(t: Table, rule: Rule) -> Table:
    wide = Table(t.table.double(), rule, {}, "master", fast=False)
    wide.admit(ADMITTED)
    wide.fill()
    if t.master is not None:
        wide.table[ADMITTED] = t.master[: t.used].double()
    for buffer, values in zip(wide.buffers, t.buffers, strict=True):
        buffer[: t.used] = values[: t.used]
    wide.last[:] = t.last
    return wide


def parts(t: Table) -> list[Tensor]:
    whole = [t.table, t.last, t.slot, *t.buffers]
    return [x.clone() for x in (whole if t.master is None else [*whole, t.master])]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(a, b, strict=True))


def check(t: Table, ids: Tensor, exact: Table, old: Tensor) -> None:
    """Rows `ids`, from `old` (V, D) on, are those of `exact` up to rounding, and so is the state."""
    slot, steps = t.slot[ids].long(), len(t.steps)
    there, want = slot >= 0, exact.table[ids]
    bound = 5e-5 * (want - old[ids]).abs() + 41 * (torch.finfo(torch.float32).eps * want.abs() + 1e-7)
    if t.table.dtype == torch.float32:
        assert ((t.table[ids].double() - want).abs() <= bound).all()
    if t.master is not None:
        fine = t.master[slot[there]]
        assert ((fine.double() - want[there]).abs() <= bound[there]).all()
        assert torch.equal(t.table[ids[there]], fine.to(t.table.dtype))
    rounding = torch.finfo(t.table.dtype).eps * want.abs() + 1e-7  # 1e-7: of fp16's subnormal numbers
    assert ((t.table[ids].double() - want).abs() <= bound + rounding).all()
    # m may be what is left of its old self and the gradient
    for got, truth, atol in zip(t.buffers, exact.buffers, (5e-10 if steps > STEPS else 1e-38, 1e-38), strict=True):
        torch.testing.assert_close(got[: t.used].double(), truth[: t.used], rtol=5e-6, atol=atol)
    assert (t.last[ids] == steps).all()


@pytest.mark.parametrize("by_leap", [True, False])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_and_catching_up(dtype: torch.dtype, eps: float, by_leap: bool, shim: Shimmed) -> None:
    """A read gives what catching up writes, and writes nothing; rows without moments decay."""
    ids = torch.arange(ROWS)
    for i, width in enumerate(WIDTHS):
        shim.schedule = SCHEDULES[i % 4]
        t, rule = table(width, dtype, eps)
        exact, leap, before = in_double(t, rule), t.leap if by_leap else None, parts(t)
        old = exact.table.clone()
        seen = shim.row_update.read_rows(t, ids, rule, t.steps, leap)
        assert seen.dtype == dtype
        assert same(parts(t), before), "a read wrote"
        reference.step_rows(exact, ids, None, rule, t.steps, None)
        shim.row_update.step_rows(t, ids, None, rule, t.steps, leap)
        assert torch.equal(t.table, seen)
        check(t, ids, exact, old)


@pytest.mark.parametrize("by_leap", [True, False])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps(dtype: torch.dtype, eps: float, by_leap: bool, shim: Shimmed) -> None:
    """With a gradient; other rows stay as they are."""
    for i, width in enumerate(WIDTHS):
        shim.schedule = SCHEDULES[i % 4]
        ids = ADMITTED[i % 3 :]
        t, rule = table(width, dtype, eps)
        exact, leap, before = in_double(t, rule), t.leap if by_leap else None, parts(t)
        old = exact.table.clone()
        grad = (torch.randn(len(ids), width, generator=torch.Generator().manual_seed(i)) * 1e-2).to(dtype)
        t.advance(numbers(STEPS + 1))
        reference.step_rows(exact, ids, grad.double(), rule, t.steps, None)
        shim.row_update.step_rows(t, ids, grad, rule, t.steps, leap)
        check(t, ids, exact, old)
        others = torch.ones(ROWS, dtype=torch.bool).index_fill_(0, ids, False)
        for now, was in zip((t.table, t.last), before, strict=False):
            assert torch.equal(now[others], was[others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_with_scalars(dtype: torch.dtype, shim: Shimmed) -> None:
    """Skipped ones write nothing; the others are those of a gradient scaled in fp64."""
    for i, width in enumerate(WIDTHS):
        shim.schedule = SCHEDULES[i % 4]
        t, rule = table(width, dtype, 1e-2)
        exact, leap, before = in_double(t, rule), t.leap, parts(t)
        old = exact.table.clone()
        grad = torch.randn(len(ADMITTED), width, generator=torch.Generator().manual_seed(i)).to(dtype)
        t.advance(numbers(STEPS + 1))
        scale = torch.tensor(1 / 300)
        for found_inf in (1.0, torch.nan):
            shim.row_update.step_rows(t, ADMITTED, grad, rule, t.steps, leap, scale, torch.tensor(found_inf))
            assert same(parts(t), before)
        shim.row_update.step_rows(t, ADMITTED, grad, rule, t.steps, leap, scale, torch.tensor(0.0))
        reference.step_rows(exact, ADMITTED, grad.double() * scale.double(), rule, t.steps, None)
        check(t, ADMITTED, exact, old)


def test_some_elements_leap_and_some_are_replayed() -> None:
    """What the problems above are: within 8 elements both kinds, with eps = 1e-2 alone."""
    for eps, mixed in ((1e-8, False), (1e-2, True)):
        t, rule = table(520, torch.float32, eps)
        leap = t.leap
        assert leap is not None
        p, (m, v) = t.gather(ADMITTED)
        rest = leap_in_torch(p, m, v, leap.rows(t.last, ADMITTED), rule.eps).reshape(len(ADMITTED), -1, 8)
        assert bool((rest.any(2) & ~rest.all(2)).any()) == mixed
        assert bool(rest.any()) == mixed


@pytest.mark.parametrize("width", [37, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_schedule_and_alignment_gives_the_same_bits(dtype: torch.dtype, width: int, shim: Shimmed) -> None:
    """Tables that are views of wider ones, of which the rest is not touched."""
    found = []
    for schedule, (offset, pad) in zip(SCHEDULES, ((0, 0), (8, 48 - width), (3, 5), (0, 1)), strict=True):
        shim.schedule = schedule
        t, rule = table(width, dtype, 1e-2)
        wide = torch.full((ROWS, offset + width + pad), 77.0, dtype=dtype)
        t.table = wide[:, offset : offset + width].copy_(t.table)
        ids = torch.arange(ROWS)
        read = shim.row_update.read_rows(t, ids, rule, t.steps, t.leap)
        shim.row_update.step_rows(t, ids, None, rule, t.steps, t.leap)
        found.append([read, *parts(t)])
        around = torch.ones(wide.shape, dtype=torch.bool)
        around[:, offset : offset + width] = False
        assert (wide[around] == 77).all()
    assert all(same(one, found[0]) for one in found)


def test_a_row_is_read_as_often_as_it_is_asked_for(shim: Shimmed) -> None:
    t, rule = table(36, torch.bfloat16)
    ids = torch.tensor([5, 1, 5, 22, 5, 1] * 20)
    twice = torch.stack([ids, ids], 1)[:, 0]
    one = shim.row_update.read_rows(t, torch.arange(ROWS), rule, t.steps, t.leap)
    assert torch.equal(shim.row_update.read_rows(t, twice, rule, t.steps, t.leap), one[ids])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_without_a_master_the_table_is_what_steps(rounding: str, shim: Shimmed) -> None:
    """Stochastic rounding of an fp32 table is none."""
    dtype = torch.bfloat16 if rounding == "nearest" else torch.float32
    t, rule = table(36, dtype, rounding=rounding)
    assert t.master is None
    exact = in_double(t, rule)
    old, grad = exact.table.clone(), torch.full((len(ADMITTED), 36), 1e-2)
    leap = t.leap
    t.advance(numbers(STEPS + 1))
    reference.step_rows(exact, ADMITTED, grad.to(dtype).double(), rule, t.steps, None)
    shim.row_update.step_rows(t, ADMITTED, grad, rule, t.steps, leap)
    check(t, ADMITTED, exact, old)


def test_the_first_step_of_all(shim: Shimmed) -> None:
    """No step to catch up with, and no leap."""
    rule = Rule(*BETAS, 1e-8, False, False)
    t = Table(torch.ones(ROWS, 12), rule, {}, "master", fast=True)
    assert torch.equal(shim.row_update.read_rows(t, ADMITTED, rule, t.steps, t.leap), torch.ones(9, 12))
    t.admit(ADMITTED)
    t.advance(numbers(1))
    grad = torch.linspace(-1, 1, 9 * 12).reshape(9, 12)
    shim.row_update.step_rows(t, ADMITTED, grad, rule, t.steps, None)
    p = torch.nn.Parameter(torch.ones(9, 12, dtype=torch.float64))
    p.grad = grad.double()
    torch.optim.AdamW([p], lr=numbers(1)[3], weight_decay=0.1).step()
    torch.testing.assert_close(t.table[ADMITTED].double(), p.detach(), rtol=1e-6, atol=0)
    assert t.last.sum() == len(ADMITTED)


def test_no_rows(shim: Shimmed) -> None:
    t, rule = table(9, torch.float32)
    none, before = torch.zeros(0, dtype=torch.int64), parts(t)
    assert shim.row_update.read_rows(t, none, rule, t.steps, t.leap).shape == (0, 9)
    shim.row_update.step_rows(t, none, torch.zeros(0, 9), rule, t.steps, t.leap)
    assert same(parts(t), before)


def test_what_it_does_not_take(shim: Shimmed) -> None:
    t, rule = table(9, torch.bfloat16)
    slow, stochastic, strided = (table(9, torch.bfloat16)[0] for _ in range(3))
    slow.fast, stochastic.rounding, strided.table = False, "stochastic", t.table.t()
    for found, by, why in (
        (t, rule, "device is cpu"),
        (slow, rule, "torch's bits"),
        (stochastic, rule, "stochastic rounding"),
        (strided, rule, "strides"),
        (t, Rule(*BETAS, 1e-8, True, False), "amsgrad"),
        (t, Rule(*BETAS, 1e-8, False, True), "rowwise"),
        (table(9, torch.float64)[0], rule, "dtype is torch.float64"),
    ):
        assert why in shim.row_update.why_not(found, by)
