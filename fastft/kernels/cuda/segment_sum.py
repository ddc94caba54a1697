"""Checks, pointers and the output of csrc/cuda/segment_sum.cu."""

import torch
from torch import Tensor

from fastft import _cuda
from fastft.kernels.cuda import launching_on, refusal

KERNELS = {
    torch.float32: _cuda.segment_sum_float32,
    torch.bfloat16: _cuda.segment_sum_bfloat16,
    torch.float16: _cuda.segment_sum_float16,
}


def why_not(values: Tensor) -> str | None:
    return refusal(values) if values.dtype in KERNELS else f"dtype is {values.dtype}"


def segment_sum(values: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    """(U, D) fp32: row u sums `values` (N, D) at `order` (N,)[ends[u - 1] : ends[u]], in a fixed order.

    Runs on the current stream and waits for nothing.
    """
    values = values if values.stride(1) == 1 else values.contiguous()
    order, ends = order.contiguous(), ends.contiguous()
    n, width = len(order), values.shape[1]
    out = torch.empty(len(ends), width, dtype=torch.float32, device=values.device)
    partials = torch.empty(max(0, n - 1) // _cuda.segment_chunk, width, dtype=torch.float32, device=values.device)
    with launching_on(values) as stream:
        KERNELS[values.dtype](
            n, len(ends), width, values.data_ptr(), values.stride(0), order.data_ptr(), ends.data_ptr(),
            partials.data_ptr(), out.data_ptr(), stream,
        )  # fmt: skip
    return out
