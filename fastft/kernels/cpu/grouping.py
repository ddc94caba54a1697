"""Checks, pointers and outputs of csrc/cpu/grouping.cpp; contract: kernels/reference/grouping.py."""

from torch import Tensor

from fastft import _cpu

MOST = 1 << 32  # ids and positions


def why_not(ids: Tensor, rows: int) -> str | None:
    if ids.device.type != "cpu":
        return f"device is {ids.device}"
    return None if rows <= MOST and len(ids) < MOST else f"{len(ids)} ids of {rows} are more than 32 bits tell apart"


def grouped(ids: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = ids.contiguous()
    touched, order, ends = ids.new_empty(3, len(ids)).unbind()
    u = _cpu.group(len(ids), ids.data_ptr(), touched.data_ptr(), order.data_ptr(), ends.data_ptr())
    return touched[:u], order, ends[:u]
