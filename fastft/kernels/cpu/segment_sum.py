"""Checks, pointers and the output of csrc/cpu/segment_sum.cpp."""

import torch
from torch import Tensor

from fastft import _cpu

KERNELS = {
    torch.float32: _cpu.segment_sum_float32,
    torch.bfloat16: _cpu.segment_sum_bfloat16,
    torch.float16: _cpu.segment_sum_float16,
}


def why_not(values: Tensor) -> str | None:
    if values.device.type != "cpu":
        return f"device is {values.device}"
    return None if values.dtype in KERNELS else f"dtype is {values.dtype}"


def segment_sum(values: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    """(U, D) fp32: row u sums `values` (N, D) at `order` (N,)[ends[u - 1] : ends[u]], in that order."""
    values = values if values.stride(1) == 1 else values.contiguous()
    order, ends = order.contiguous(), ends.contiguous()
    out = torch.empty(len(ends), values.shape[1])
    KERNELS[values.dtype](
        len(ends), values.shape[1], values.data_ptr(), values.stride(0), order.data_ptr(), ends.data_ptr(),
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out
