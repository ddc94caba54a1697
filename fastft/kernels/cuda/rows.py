"""Checks, pointers and outputs of csrc/cuda/rows.cu: supervised positions, and rows gathered and scattered by them."""

import torch
from torch import Tensor

from fastft import _cuda
from fastft.kernels.cuda import launching_on, refusal


def why_not(x: Tensor) -> str | None:
    return refusal(x)


def compact(target: Tensor, ignore_index: int, capacity: int | None = None) -> Tensor:
    """Ascending positions (K,) int64 where `target` (N,) is not `ignore_index`, at the cost of a synchronisation.

    With `capacity` without one: as many entries, -1 past the last position; positions past `capacity` are dropped.
    """
    target, n = target.contiguous(), target.shape[0]
    tiles = max(1, -(-n // _cuda.compact_tile))
    counts = torch.empty(tiles + 1, dtype=torch.int64, device=target.device)  # the last one: of all tiles
    valid = torch.empty(n if capacity is None else capacity, dtype=torch.int64, device=target.device)
    with launching_on(target) as stream:
        _cuda.compact(
            n, target.data_ptr(), ignore_index, counts.data_ptr(), valid.shape[0], valid.data_ptr(),
            counts[tiles:].data_ptr(), stream,
        )  # fmt: skip
    return valid if capacity is not None else valid[: int(counts[tiles])]


def gather_rows(x: Tensor, valid: Tensor) -> Tensor:
    """x (N, D) at `valid` (K,) as (K, D); a zero row where that is not in [0, N)."""
    x, valid = with_unit_stride(x), valid.contiguous()
    out = torch.empty(valid.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
    with launching_on(x) as stream:
        _cuda.gather_rows(*shape_of(out), x.data_ptr(), *source(x), out.data_ptr(), valid.data_ptr(), stream)
    return out


def scatter_rows(rows: Tensor, valid: Tensor, n: int) -> Tensor:
    """(n, D): `rows` (K, D) at `valid` (K,), zero rows elsewhere, in one pass. -1 entries, last, are dropped."""
    rows, valid = with_unit_stride(rows), valid.contiguous()
    out = torch.empty(n, rows.shape[1], dtype=rows.dtype, device=rows.device)
    with launching_on(rows) as stream:
        _cuda.scatter_rows(*shape_of(out), rows.data_ptr(), *source(rows), out.data_ptr(), valid.data_ptr(), stream)
    return out


def with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def shape_of(out: Tensor) -> tuple[int, int]:
    """Rows, and bytes per row."""
    return out.shape[0], out.shape[1] * out.element_size()


def source(x: Tensor) -> tuple[int, int]:
    """Rows, and bytes from one to the next."""
    return x.shape[0], x.stride(0) * x.element_size()
