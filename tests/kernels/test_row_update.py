"""The contract of a `row_update` kernel: reads write nothing, steps write their rows alone, as the reference does."""

import functools
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import device_of
from torch import Tensor

from fastft import dispatch
from fastft.kernels.reference import row_update as reference
from fastft.optim.adamw import Rule
from fastft.optim.gradient import grouped
from fastft.optim.leap import Leaps
from fastft.optim.replay import Mirror, Verdict
from fastft.optim.table import Table
from kernels.interpreter import interpreted

ROWS, WIDTH = 50, 150
SIZES = (-9, -2)  # powers of 10 of gradients, by column: leaps are good enough for a part of a row
RULE = Rule(0.9, 0.999, 1e-8, False, False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def table(dtype: torch.dtype = torch.float32, rule: Rule = RULE, **options: Any) -> Table:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(ROWS, WIDTH, generator=g, device="cpu").to(dtype).to(torch.get_default_device())
    return Table(start, rule, {}, options.get("rounding", "master"), fast=options.get("fast", True))


def step_interpreted(t: Table, *args: Any) -> None:
    t.fill()  # in the other process it is a copy of the table that would know of it
    interpreted("fastft.kernels.triton.row_update", "step_rows", t, *args)


INTERPRETED = SimpleNamespace(
    **{
        name: functools.partial(interpreted, "fastft.kernels.triton.row_update", name)
        for name in ("why_not", "read_rows")
    },
    step_rows=step_interpreted,
)


def usable(backend: str) -> Any:
    module: Any = INTERPRETED if backend == "interpreted triton" else dispatch.load("row_update", backend)[0]
    with device_of(backend):
        return module if module is not None and module.why_not(table(), RULE) is None else None


BACKENDS = [b for b in dispatch.BACKENDS if usable(b)] + ["interpreted triton"] * (find_spec("triton") is not None)


def trained(
    kernel: Any, steps: int, dtype: torch.dtype, eps: float = 1e-8, **options: Any
) -> tuple[Table, list[Tensor]]:
    """A table after steps on random rows, and what was read before each."""
    rule = Rule(0.9, 0.999, eps, False, False)
    t, reads, g = table(dtype, rule, **options), [], torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        ids = torch.randint(ROWS - 5, (6,), generator=g, device="cpu").unique().to(torch.get_default_device())
        grad = torch.randn(len(ids), WIDTH, generator=g, device="cpu") * torch.logspace(*SIZES, WIDTH, device="cpu")
        grad = grad.to(ids.device, dtype)
        seen = torch.cat([ids, ids[:2], torch.tensor([ROWS - 1])])
        before = t.table.clone()
        reads.append(kernel.read_rows(t, seen, rule, t.steps, t.leap))
        groups = grouped(seen, ROWS)
        spread = kernel.read_rows(t, groups.touched, rule, t.steps, t.leap, groups)
        assert torch.equal(spread, reads[-1]), "at the positions of each row"
        assert torch.equal(before, t.table)
        t.admit(ids)
        leap = t.leap
        t.advance((1 - 1e-4, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** 0.5, 1e-2))
        kernel.step_rows(t, ids, grad, rule, t.steps, leap)
        others = torch.ones(ROWS, dtype=torch.bool).index_fill_(0, ids, False)
        assert torch.equal(before[others], t.table[others])
        assert (t.last[ids] == step).all()
    everything = torch.arange(ROWS)
    kernel.step_rows(t, everything, None, rule, t.steps, t.leap)
    return t, reads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_like_the_reference(backend: str, eps: float, fast: bool, dtype: torch.dtype) -> None:
    """With eps = 1e-2 leaps are not good enough for most elements, which are replayed."""
    with device_of(backend):
        kernel = usable(backend)
        if kernel is None or kernel.why_not(table(dtype, fast=fast), RULE):
            pytest.skip(f"{backend} does not take it")
        (got, reads), (want, expected) = (trained(k, 40, dtype, eps, fast=fast) for k in (kernel, reference))
        half = {"rtol": torch.finfo(dtype).eps, "atol": 1e-5}
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else half
        for a, b in zip(reads, expected, strict=True):
            torch.testing.assert_close(a, b, **tolerance)
        torch.testing.assert_close(got.table, want.table, **tolerance)
        for a, b in zip(got.buffers, want.buffers, strict=True):
            torch.testing.assert_close(a[: got.used], b[: want.used], rtol=1e-5, atol=1e-9)
        assert torch.equal(got.last, want.last)


def parts(t: Table) -> list[Tensor]:
    held = [t.table, t.last, *(b[: t.used] for b in t.buffers)]
    return [x.clone() for x in (held if t.master is None else [*held, t.master[: t.used]])]


def one_step(kernel: Any, t: Table, ids: Tensor, grad: Tensor, *scalars: float | None) -> None:
    """With the step's scale and found_inf, by which it is settled."""
    t.admit(ids)
    leap, step = t.leap, len(t.steps) + 1
    scale, found_inf = (None if x is None else torch.tensor(x) for x in (*scalars, None, None)[:2])
    numbers = 1 - 1e-4, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** 0.5, 1e-2
    t.advance(numbers, None if found_inf is None else Verdict(found_inf))
    kernel.step_rows(t, ids, grad, RULE, t.steps, leap, *([scale, found_inf] if scalars else []))
    t.settle()


STEPPED = [torch.tensor([0, 3, 4]), torch.tensor([1, 3]), torch.tensor([0, 2, 3, 40, 49])]  # late, new and neither


@pytest.mark.parametrize("rounding", ["master", "nearest"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scaled_gradients(backend: str, dtype: torch.dtype, rounding: str) -> None:
    """As one that is scaled before, in fp32: a half type does not hold it."""
    with device_of(backend):
        kernel, t, want = usable(backend), *(table(dtype, rounding=rounding) for _ in range(2))
        g = torch.Generator().manual_seed(0)
        for ids in STEPPED:
            here = ids.to(t.table.device)
            grad = torch.randn(len(ids), WIDTH, generator=g, device="cpu").to(t.table)
            one_step(kernel, t, here, grad, 1 / 3000)
            one_step(reference, want, here, grad.float() * (1 / 3000))
        eps = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(t.table, want.table, rtol=eps, atol=eps)
        for got, truth in zip(parts(t)[1:], parts(want)[1:], strict=True):
            torch.testing.assert_close(got, truth, rtol=eps if rounding == "nearest" else 1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_skipped_step_writes_nothing(backend: str, dtype: torch.dtype) -> None:
    """Nor is it in the way of the next, which is the step that it would have been."""
    with device_of(backend):
        kernel, t, want = usable(backend), *(table(dtype) for _ in range(2))
        for ids in STEPPED:
            here = ids.to(t.table.device)
            grad = torch.ones(len(ids), WIDTH, dtype=dtype)
            one_step(kernel, want, here, grad)
            for found_inf in (1.0, torch.nan):
                t.admit(here)
                before = [x.nan_to_num(0) for x in parts(t)]  # the state of new rows, once it is written
                one_step(kernel, t, here, torch.full_like(grad, torch.nan), None, found_inf)
                t.fill()
                assert all(torch.equal(now, was) for now, was in zip(parts(t), before, strict=True))
            one_step(kernel, t, here, grad, None, 0.0)
            for got, wanted in zip(parts(t), parts(want), strict=True):
                torch.testing.assert_close(got, wanted, rtol=max(torch.finfo(dtype).eps, 1e-6), atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str) -> None:
    with device_of(backend):
        kernel, t, none = usable(backend), table(), torch.empty(0, dtype=torch.int64)
        assert kernel is not None
        assert kernel.read_rows(t, none, RULE, t.steps, t.leap).shape == (0, WIDTH)
        before = t.table.clone()
        kernel.step_rows(t, none, None, RULE, t.steps, t.leap)
        assert torch.equal(before, t.table)


def test_what_the_cpu_kernel_leaves_to_the_reference() -> None:
    kernel = usable("cpu")
    assert kernel is not None
    for t, rule in (
        (table(fast=False), RULE),
        (table(torch.bfloat16, rounding="stochastic"), RULE),
        (table(), Rule(0.9, 0.999, 1e-8, True, False)),
        (table(torch.float64), RULE),
    ):
        assert kernel.why_not(t, rule)
        assert dispatch.pick("row_update", ("cpu", "reference"), "auto", t, rule) is reference


def test_what_the_triton_kernel_leaves_to_the_reference() -> None:
    if "interpreted triton" not in BACKENDS:
        pytest.skip("triton is not installed")
    for t, rule in (
        (table(fast=False), RULE),
        (table(), Rule(0.9, 0.999, 1e-8, True, False)),
        (table(), Rule(0.9, 0.999, 1e-8, False, True)),
        (table(torch.float64), RULE),
    ):
        assert INTERPRETED.why_not(t, rule)


def no_leap(backend: str) -> Any:
    """The kernel, given no leaps."""
    kernel = usable(backend)
    return SimpleNamespace(
        read_rows=lambda t, ids, rule, steps, leap, *groups: kernel.read_rows(t, ids, rule, steps, None, *groups),
        step_rows=lambda *args: kernel.step_rows(*args[:-1], None),
    )


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_replaying_all_that_was_missed(backend: str) -> None:
    with device_of(backend):
        (got, reads), (want, expected) = (
            trained(k, 20, torch.float32) for k in (no_leap(backend), no_leap("reference"))
        )
        for a, b in zip([*reads, got.table], [*expected, want.table], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_master(backend: str, rounding: str) -> None:
    """A step of a hundredth of a bf16 unit moves no element, or one in a hundred by a whole unit."""
    with device_of(backend):
        start = torch.full((40, 1500), 1.0, dtype=torch.bfloat16)
        t, kernel = Table(start, RULE, {}, rounding, fast=True), usable(backend)
        if kernel.why_not(t, RULE):
            pytest.skip(f"{backend} does not take it")
        ids = torch.arange(0, 40, 2)
        t.admit(ids)
        leap = t.leap
        lr = 2**-8 / 100  # below 1 a unit is 2^-8
        t.advance((1.0, lr / (1 - 0.9), (1 - 0.999) ** 0.5, lr))
        torch.manual_seed(0)
        kernel.step_rows(t, ids, torch.ones(20, 1500, dtype=torch.bfloat16), RULE, t.steps, leap)
        moved = t.table[ids] != 1
        assert (t.table[ids][moved] == 1 - 2**-8).all()
        assert (t.table[1::2] == 1).all()
        share = moved.float().mean()
        assert 0.008 < share < 0.012 if rounding == "stochastic" else share == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [512, 515])
def test_an_output_larger_than_caches(width: int, dtype: torch.dtype) -> None:
    """It is written past them, where rows are whole units: each position has its row, to the bit."""
    kernel, _ = dispatch.load("row_update", "cpu")
    assert kernel is not None
    t = Table(torch.randn(300, width, device="cpu").to(dtype), RULE, {}, "nearest", fast=True)
    for step in (1, 2, 3):
        ids = torch.arange(0, 300, step, device="cpu")
        t.admit(ids)
        leap = t.leap
        t.advance((0.999, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** 0.5, 1e-2))
        kernel.step_rows(t, ids, torch.randn(len(ids), width, device="cpu").to(dtype), RULE, t.steps, leap)
    groups = grouped(torch.randint(300, (4500,), device="cpu"), 300)
    rows = kernel.read_rows(t, groups.touched, RULE, t.steps, t.leap)
    large = kernel.read_rows(t, groups.touched, RULE, t.steps, t.leap, groups)
    assert large.nbytes > 1 << 22 > rows.nbytes
    assert torch.equal(large, groups.spread(rows))


def test_a_mirror_follows() -> None:
    """What a device's copy of growing rows, some of them changed, is after each update, in the same memory mostly."""
    rows, mirror, places = torch.rand(1000, 3), Mirror(), set()
    for n in range(1, 1000, 7):
        rows[max(0, n - 20) : n] += 1
        mirror.changed(max(0, n - 20))
        copy = mirror.updated(rows[:n], rows.device)
        assert torch.equal(copy, rows[:n])
        places.add(copy.data_ptr())
    assert rows.data_ptr() not in places
    assert len(places) < 8
    rows[10] += 1
    mirror.changed(500)
    assert not torch.equal(mirror.updated(rows[:999], rows.device), rows[:999]), "all was copied again"


def test_leaps_where_nothing_moves_divide_by_nothing() -> None:
    """No step missed, or one with a learning rate of 0, of elements whose v has underflowed."""
    leaps = Leaps(0.9, 0.999, 0)
    for step in (1, 2):
        leaps.append((1.0, 0.0, (1 - 0.999**step) ** 0.5, 0.0))
    p, m, v = torch.ones(2, 1), torch.full((2, 1), 1e-30), torch.zeros(2, 1)
    rest = RULE.leap(p, [m, v], leaps.rows(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([0, 1])))
    assert not rest.any()
    assert (p == 1).all()
