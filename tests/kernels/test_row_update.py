"""The contract of a `row_update` kernel: reads write nothing, steps write their rows alone, as the reference does."""

from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import device_of
from torch import Tensor

from fastft import dispatch
from fastft.kernels.reference import row_update as reference
from fastft.optim.adamw import Rule
from fastft.optim.table import Table

ROWS, WIDTH = 50, 37
RULE = Rule(0.9, 0.999, 1e-8, False, False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def table(dtype: torch.dtype = torch.float32, rule: Rule = RULE, **options: Any) -> Table:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(ROWS, WIDTH, generator=g, device="cpu").to(dtype).to(torch.get_default_device())
    return Table(start, rule, {}, options.get("rounding", "master"), fast=options.get("fast", True))


def usable(backend: str) -> ModuleType | None:
    module, _ = dispatch.load("row_update", backend)
    with device_of(backend):
        return module if module is not None and module.why_not(table(), RULE) is None else None


BACKENDS = [b for b in dispatch.BACKENDS if usable(b)]


def trained(
    kernel: Any, steps: int, dtype: torch.dtype, eps: float = 1e-8, **options: Any
) -> tuple[Table, list[Tensor]]:
    """A table after steps on random rows, and what was read before each."""
    rule = Rule(0.9, 0.999, eps, False, False)
    t, reads, g = table(dtype, rule, **options), [], torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        ids = torch.randint(ROWS - 5, (6,), generator=g, device="cpu").unique().to(torch.get_default_device())
        grad = torch.randn(len(ids), WIDTH, generator=g, device="cpu").to(ids.device, dtype) * 1e-2
        seen = torch.cat([ids, ids[:2], torch.tensor([ROWS - 1])])
        before = t.table.clone()
        reads.append(kernel.read_rows(t, seen, rule, t.steps, t.leap(seen)))
        assert torch.equal(before, t.table)
        t.admit(ids)
        leap = t.leap(ids)
        t.advance((1 - 1e-4, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** 0.5, 1e-2), rule)
        kernel.step_rows(t, ids, grad, rule, t.steps, leap)
        others = torch.ones(ROWS, dtype=torch.bool).index_fill_(0, ids, False)
        assert torch.equal(before[others], t.table[others])
        assert (t.last[ids] == step).all()
    everything = torch.arange(ROWS)
    kernel.step_rows(t, everything, None, rule, t.steps, t.leap(everything))
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
        tolerance = (
            {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": torch.finfo(dtype).eps, "atol": 1e-5}
        )
        for a, b in zip(reads, expected, strict=True):
            torch.testing.assert_close(a, b, **tolerance)
        torch.testing.assert_close(got.table, want.table, **tolerance)
        for a, b in zip(got.buffers, want.buffers, strict=True):
            torch.testing.assert_close(a[: got.used], b[: want.used], rtol=1e-5, atol=1e-9)
        assert torch.equal(got.last, want.last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str) -> None:
    with device_of(backend):
        kernel, t, none = usable(backend), table(), torch.empty(0, dtype=torch.int64)
        assert kernel is not None
        assert kernel.read_rows(t, none, RULE, t.steps, t.leap(none)).shape == (0, WIDTH)
        before = t.table.clone()
        kernel.step_rows(t, none, None, RULE, t.steps, t.leap(none))
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
