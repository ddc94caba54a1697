"""Checks, pointers and outputs of csrc/cpu/grouping.cpp; contract: kernels/reference/grouping.py."""

from torch import Tensor

from fastft import _cpu

MOST = 1 << 32  # ids and positions


def why_not(ids: Tensor, rows: int) -> str | None:
    if ids.device.type != "cpu":
        return f"device is {ids.device}"
    return None if rows <= MOST and len(ids) < MOST else f"{len(ids)} ids of {rows} are more than 32 bits tell apart"


def first_outside(ids: Tensor, rows: int) -> int:
    ids = ids.contiguous()
    return _cpu.first_outside(ids.data_ptr(), len(ids), rows)


def grouped(ids: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    ids, n = ids.contiguous(), len(ids)
    out = ids.new_empty(3 * n)
    u = _cpu.group(n, ids.data_ptr(), out.data_ptr())
    touched, ends, order, _ = out.split_with_sizes((u, u, n, 2 * (n - u)))
    return touched, order, ends
