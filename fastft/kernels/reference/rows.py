"""Positions of supervised tokens, and rows gathered from and scattered to them, in plain torch."""

import torch
from torch import Tensor


def why_not(x: Tensor) -> str | None:
    return None


def compact(target: Tensor, ignore_index: int, capacity: int | None = None) -> Tensor:
    """Ascending positions where `target` (N,) is not `ignore_index`: (K,) int64, or the first `capacity` and -1s."""
    keep = target != ignore_index
    if capacity is None:
        return keep.nonzero()[:, 0]
    return torch.nonzero_static(keep, size=capacity, fill_value=-1)[:, 0]


def gather_rows(x: Tensor, valid: Tensor) -> Tensor:
    """x (N, D) at `valid` (K,): (K, D), zero rows where -1."""
    return x[valid.clamp(min=0)].masked_fill_((valid < 0)[:, None], 0)


def scatter_rows(rows: Tensor, valid: Tensor, n: int) -> Tensor:
    """(n, D) with `rows` (K, D) at `valid` (K,) and zeros elsewhere; entries at -1 are dropped."""
    out = rows.new_zeros(n + 1, rows.shape[1])  # what is dropped goes to row n
    return out.index_copy_(0, torch.where(valid < 0, n, valid), rows)[:n]
