"""Triton kernels compiled ahead of time for the GPUs that they are written for; pytest -s says what each one takes.

The interpreter takes what the compiler refuses, and the compiler proves no result: test_triton.py has the other half.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastft.kernels.triton import INTERPRETED, row_update, rows, segment_sum
from fastft.kernels.triton import cross_entropy as kernels
from fastft.kernels.triton.tuning import BLOCKS, SPLIT_BLOCK, Block, Plan
from fastft.optim.adamw import Rule
from fastft.optim.table import Table
from kernels.aot import ARCHITECTURES, Compiled, launches_compiled
from kernels.test_cross_entropy import DTYPES

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: there is nothing to compile")

REGISTERS = 128  # per thread, so that 16 warps of a processor run at once
STACK = 64  # bytes per thread: ptxas keeps there what a row needs once, such as the thread's index,
SPILLED = 16  # and what it gives up in a loop, of its own accord, to run more warps at once


class Case(NamedTuple):
    """What changes a kernel's code: dtypes, options that are None, constants, and what Triton specialises on."""

    dtype: torch.dtype
    scaled: bool
    capped: bool
    with_q: bool
    grad: str
    layout: str
    block: int | str


LEVELS: tuple[tuple[Any, ...], ...] = (
    DTYPES,
    (False, True),
    (False, True),
    (False, True),
    ("in place", "apart", "none"),
    ("whole vectors", "odd", "one class", "off a boundary", "far apart"),
    (*range(len(BLOCKS)), "split"),
)
MOST = [  # registers, by block
    Case(torch.bfloat16, True, True, True, grad, layout, block)
    for grad, layout in (("in place", "odd"), ("apart", "whole vectors"))
    for block in LEVELS[-1]
]


def covering() -> Iterator[Case]:
    """MOST, and what it takes for each two levels of two factors to meet in a case."""

    def pairs(case: tuple[Any, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(case), 2))

    everything = {case: pairs(case) for case in itertools.product(*LEVELS)}
    left = set().union(*everything.values())
    for most in MOST:
        left -= pairs(most)
        yield most
    while left:
        best = max(everything, key=lambda case: len(everything[case] & left))
        left -= everything[best]
        yield Case(*best)


def logits(layout: str, dtype: torch.dtype) -> Tensor:
    if layout == "off a boundary":
        return torch.zeros(16 * 96 + 1, dtype=dtype)[1:].view(16, 96)
    if layout == "far apart":
        return torch.zeros(96, dtype=dtype).as_strided((1, 96), (2**31, 1))
    return torch.zeros(16, {"whole vectors": 96, "odd": 97, "one class": 1}[layout], dtype=dtype)


def launch(case: Case, plan: Plan) -> None:
    z = logits(case.layout, case.dtype)
    m, v = z.shape
    grad = {"none": None, "in place": z, "apart": torch.zeros(m, v + 1, dtype=case.dtype)[:, :v]}[case.grad]
    kernels.cross_entropy(
        z, torch.zeros(m, dtype=torch.int64), torch.zeros(m, 3), torch.ones(v) if case.with_q else None,
        2.0 if case.scaled else 1.0, 30.0 if case.capped else 0.0, grad, plan,
    )  # fmt: skip


def say(architecture: int, case: object, c: Compiled) -> None:
    print(f"sm_{architecture} {case}: {c.name} {c.registers} registers, {c.stack} B of stack, {c.shared} B shared")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cross_entropy(architecture: int) -> None:
    """The loops over a row do not spill, sixteen warps fit a processor, and memory moves 16 bytes at a time."""
    for case in covering():
        split = case.block == "split"
        plan = Plan(SPLIT_BLOCK, 0, 4) if split else Plan(BLOCKS[case.block][1], 4, 0)  # type: ignore[index]
        with launches_compiled(architecture) as compiled:
            launch(case, plan)
        assert [c.name for c in compiled] == [*(["sums_kernel"] if split else []), "rows_kernel"], case
        for c in compiled:
            say(architecture, case, c)
            if case.layout == "off a boundary":  # slow, and right: each element has an address
                continue
            assert c.stack <= (SPILLED if c.spills else STACK), f"{case}: {c.name} spills {c.stack} B, {c.spills} times"
            assert c.registers <= REGISTERS, f"{case}: {c.name} takes {c.registers} registers"
            touches_rows = c.name == "sums_kernel" or not split or case.grad != "none"
            assert (".v4.b32" in c.ptx) == touches_rows, f"{case}: {c.name} does not move 16 bytes at once"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spills_would_be_seen(architecture: int) -> None:
    """A block of 64 classes per thread is too much for the 128 registers that each of 512 threads may have."""
    with launches_compiled(architecture) as compiled:
        launch(MOST[0]._replace(capped=False, with_q=False), Plan(Block(lanes=4096, warps=16, programs=1), 4, 0))
    assert compiled[0].spills > 0
    assert compiled[0].stack > STACK


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows(architecture: int) -> None:
    valid, target = torch.arange(8), torch.zeros(64, dtype=torch.int64)
    with launches_compiled(architecture) as compiled:
        rows.compact(target, -100, 32)
        for dtype, width in ((torch.bfloat16, 96), (torch.float32, 97), (torch.float64, 1)):
            rows.gather_rows(torch.zeros(64, width, dtype=dtype), valid)
            rows.scatter_rows(torch.zeros(8, width, dtype=dtype), valid, 64)
    assert [c.name for c in compiled] == ["count_kernel", "place_kernel", *["gather_kernel", "scatter_kernel"] * 3]
    for c in compiled:
        say(architecture, "rows", c)
        assert c.stack == 0
    assert all(".v4.b32" in c.ptx for c in compiled[2:4]), "whole vectors where the width allows"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_segment_sum(architecture: int) -> None:
    order, ends = torch.arange(300), torch.tensor([1, 100, 300])
    for dtype, width in itertools.product(DTYPES, (1, 97, 96, 4096)):
        with launches_compiled(architecture) as compiled:
            segment_sum.segment_sum(torch.zeros(300, width, dtype=dtype), order, ends)
        assert [c.name for c in compiled] == ["sum_kernel", "add_kernel"]
        for c in compiled:
            say(architecture, f"{dtype} {width}", c)
            assert c.stack == 0
            assert c.registers <= REGISTERS // 2, "32 warps of a processor"
            assert (".v4.b32" in c.ptx) == (width % 16 == 0), "16 bytes at once where the width allows"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_row_update(architecture: int) -> None:
    """Reads, steps and catching up, with and without a leap, a master and scalars; widths odd, whole vectors, several
    blocks.
    """
    rule, scalars = Rule(0.9, 0.999, 1e-8, False, False), (torch.tensor(0.5), torch.tensor(0.0))
    tables = [*itertools.product(DTYPES, (97, 4096), ("master",)), (torch.bfloat16, 1, "master")]
    for dtype, width, rounding in [*tables, (torch.bfloat16, 97, "stochastic"), (torch.bfloat16, 4096, "stochastic")]:
        t = Table(torch.zeros(8, width, dtype=dtype), rule, {}, rounding, fast=True)
        ids = torch.arange(3)
        t.admit(ids)
        for _ in range(2):
            t.advance((1.0, 0.1, 0.1, 0.1))
        leap = t.leap
        assert leap is not None
        with launches_compiled(architecture) as compiled:
            for missed in (leap, None):
                row_update.read_rows(t, ids, rule, t.steps, missed)
                grad = torch.zeros(3, width, dtype=dtype)
                row_update.step_rows(t, ids, grad, rule, t.steps, missed)
                row_update.step_rows(t, ids, grad, rule, t.steps, missed, *scalars)
                row_update.step_rows(t, ids, None, rule, t.steps, missed)
        assert [c.name for c in compiled] == ["adamw_kernel"] * 8
        for i, c in enumerate(compiled):
            say(architecture, f"{dtype} {width} {rounding} {i}", c)
            assert c.stack == 0
            assert c.registers <= REGISTERS
            assert (".v4.b32" in c.ptx) == (width % 16 == 0), "16 bytes at once where the width allows"
