"""Positions of supervised tokens, and rows gathered from and scattered to them, in Triton.

X (N, D), Valid (K,) int64 positions that ascend up to trailing -1s, Rows (K, D).
"""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastft.kernels.triton import on_device, refusal
from fastft.kernels.triton.tuning import SCAN_BLOCK, row_tile

COUNTS = ["n", "count", "capacity", "blocks", "steps", "ignore_index"]  # from batch to batch: they do not recompile


@triton.jit(do_not_specialize=COUNTS)
def count_kernel(Target, Counts, n, ignore_index, BLOCK: tl.constexpr):
    """Counts (blocks,): supervised tokens in each block of Target (n,)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(Target + i, mask=i < n, other=ignore_index)
    tl.store(Counts + tl.program_id(0), tl.sum((target != ignore_index).to(tl.int32), 0))


@triton.jit(do_not_specialize=COUNTS)
def place_kernel(Target, Counts, Valid, n, capacity, blocks, ignore_index, BLOCK: tl.constexpr):
    """Valid (capacity,): a block's positions after those of the blocks before it; -1 in slots past the last one."""
    block = tl.program_id(0)
    counts = tl.zeros((BLOCK,), tl.int64)
    earlier = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, blocks, BLOCK):
        j = start + tl.arange(0, BLOCK)
        part = tl.load(Counts + j, mask=j < blocks, other=0).to(tl.int64)
        counts += part
        earlier += tl.where(j < block, part, 0)
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(Target + i, mask=i < n, other=ignore_index)
    keep = target != ignore_index
    slot = tl.sum(earlier, 0) + tl.cumsum(keep.to(tl.int64), 0) - 1
    tl.store(Valid + slot, i, mask=keep & (slot < capacity))
    tl.store(Valid + i, tl.full((BLOCK,), -1, tl.int64), mask=(i >= tl.sum(counts, 0)) & (i < capacity))


@triton.jit(do_not_specialize=COUNTS)
def gather_kernel(X, Valid, Rows, n, count, x_stride, WIDTH, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (count, WIDTH): X (n, WIDTH) at Valid, zeros where that is no position."""
    k = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    position = tl.load(Valid + k, mask=k < count, other=-1)
    there = (position >= 0) & (position < n)
    for start in range(0, WIDTH, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        inside = (c < WIDTH)[None, :]
        x = tl.load(X + (position * x_stride)[:, None] + c[None, :], mask=there[:, None] & inside, other=0.0)
        tl.store(Rows + (k * WIDTH)[:, None] + c[None, :], x, mask=(k < count)[:, None] & inside)


@triton.jit(do_not_specialize=COUNTS)
def scatter_kernel(Rows, Valid, Out, n, count, rows_stride, WIDTH, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Out (n, WIDTH), each element written once: a row looks itself up in Valid in `steps` halvings."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    low = tl.zeros((ROWS,), tl.int64)
    high = tl.zeros((ROWS,), tl.int64) + count
    for _ in range(steps):
        middle = (low + high) // 2
        position = tl.load(Valid + middle, mask=low < high, other=-1)
        before = (position >= 0) & (position < row)
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    there = tl.load(Valid + low, mask=low < count, other=-1) == row
    for start in range(0, WIDTH, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        inside = (c < WIDTH)[None, :]
        x = tl.load(Rows + (low * rows_stride)[:, None] + c[None, :], mask=there[:, None] & inside, other=0.0)
        tl.store(Out + (row * WIDTH)[:, None] + c[None, :], x, mask=(row < n)[:, None] & inside)


def why_not(x: Tensor) -> str | None:
    return refusal(x)


def compact(target: Tensor, ignore_index: int, capacity: int | None = None) -> Tensor:
    """Ascending positions (K,) int64 where `target` (N,) is not `ignore_index`, at the cost of a synchronisation.

    With `capacity` without one: as many entries, -1 past the last position; positions past `capacity` are dropped.
    """
    if capacity is None:
        return (target != ignore_index).nonzero()[:, 0]
    target, n = target.contiguous(), target.shape[0]
    valid = torch.empty(capacity, dtype=torch.int64, device=target.device)
    blocks = triton.cdiv(n, SCAN_BLOCK)
    counts = torch.empty(blocks, dtype=torch.int32, device=target.device)
    with on_device(target):
        if blocks:
            count_kernel[(blocks,)](target, counts, n, ignore_index, BLOCK=SCAN_BLOCK)
        if programs := triton.cdiv(max(n, capacity), SCAN_BLOCK):
            place_kernel[(programs,)](target, counts, valid, n, capacity, blocks, ignore_index, BLOCK=SCAN_BLOCK)
    return valid


def gather_rows(x: Tensor, valid: Tensor) -> Tensor:
    """x (N, D) at `valid` (K,) as (K, D); a zero row where that is not in [0, N)."""
    x, valid = with_unit_stride(x), valid.contiguous()
    (n, width), count = x.shape, valid.shape[0]
    out = torch.empty(count, width, dtype=x.dtype, device=x.device)
    if out.numel():
        rows, columns = row_tile(width, x.element_size())
        with on_device(x):
            gather_kernel[(triton.cdiv(count, rows),)](
                x, valid, out, n, count, x.stride(0), width, ROWS=rows, COLUMNS=columns
            )
    return out


def scatter_rows(rows: Tensor, valid: Tensor, n: int) -> Tensor:
    """(n, D): `rows` (K, D) at `valid` (K,), zero rows elsewhere, in one pass. -1 entries, last, are dropped."""
    rows, valid = with_unit_stride(rows), valid.contiguous()
    count, width = rows.shape
    out = torch.empty(n, width, dtype=rows.dtype, device=rows.device)
    if out.numel():
        tile_rows, columns = row_tile(width, rows.element_size())
        with on_device(rows):
            scatter_kernel[(triton.cdiv(n, tile_rows),)](
                rows, valid, out, n, count, rows.stride(0), width, count.bit_length(), ROWS=tile_rows, COLUMNS=columns
            )
    return out


def with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
