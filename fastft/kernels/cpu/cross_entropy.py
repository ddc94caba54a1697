"""Checks, pointers and the output of csrc/cpu/cross_entropy.cpp. M rows, V classes."""

import torch
from torch import Tensor

from fastft import _cpu

KERNELS = {
    torch.float32: _cpu.cross_entropy_float32,
    torch.bfloat16: _cpu.cross_entropy_bfloat16,
    torch.float16: _cpu.cross_entropy_float16,
}


def why_not(logits: Tensor) -> str | None:
    if logits.device.type != "cpu":
        return f"device is {logits.device}"
    if logits.dtype not in KERNELS:
        return f"dtype is {logits.dtype}"
    return None


def cross_entropy(
    logits: Tensor, target: Tensor, coefficients: Tensor, q: Tensor | None, scale: float, softcap: float,
    grad: Tensor | None,
) -> Tensor:  # fmt: skip
    """Statistics (5, M) fp32: nll, lse, q.z, entropy, correct; `grad` (M, V) is written, may be `logits`.

    `target` (M,) int64, negative for a row to skip (below -1 its row of `grad` is not written), below V;
    `coefficients` (M, 3) fp32; `q` (V,) fp32.
    """
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    target, coefficients = target.contiguous(), coefficients.float().contiguous()
    q = None if q is None else q.float().contiguous()
    stats = torch.empty(5, logits.shape[0], dtype=torch.float32)
    KERNELS[logits.dtype](
        logits.shape[0], logits.shape[1], logits.data_ptr(), logits.stride(0),
        0 if grad is None else grad.data_ptr(), 0 if grad is None else grad.stride(0),
        target.data_ptr(), coefficients.data_ptr(), 0 if q is None else q.data_ptr(),
        scale, softcap, stats.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return stats
