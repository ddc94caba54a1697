"""Checks, pointers and the output of csrc/cuda/cross_entropy.cu. M rows, V classes."""

import torch
from torch import Tensor

from fastft import _cuda
from fastft.kernels.cuda import launching_on, limits, refusal
from fastft.kernels.cuda.tuning import Plan, plan_for

KERNELS = {
    torch.float32: _cuda.cross_entropy_float32,
    torch.bfloat16: _cuda.cross_entropy_bfloat16,
    torch.float16: _cuda.cross_entropy_float16,
}
MAX_CLASSES = 2**31 - 1


def why_not(logits: Tensor) -> str | None:
    if logits.dtype not in KERNELS:
        return f"dtype is {logits.dtype}"
    if not 0 < logits.shape[1] <= MAX_CLASSES:
        return f"there are {logits.shape[1]} classes"
    return refusal(logits)


def cross_entropy(
    logits: Tensor, target: Tensor, coefficients: Tensor, q: Tensor | None, scale: float, softcap: float,
    grad: Tensor | None, plan: Plan | None = None,
) -> Tensor:  # fmt: skip
    """Statistics (5, M) fp32: nll, lse, q.z, entropy, correct; `grad` (M, V) is written, may be `logits`.

    `target` (M,) int64, negative for a row to skip, V for one out of range (its nll is NaN); `coefficients` (M, 3)
    fp32; `q` (V,) fp32. Runs on the current stream and waits for nothing. `plan` is for tuning.
    """
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, vocab = logits.shape
    target, coefficients = target.contiguous(), coefficients.float().contiguous()
    q = None if q is None else q.float().contiguous()
    stats = torch.empty(5, rows, dtype=torch.float32, device=logits.device)
    with launching_on(logits) as stream:
        if plan is None:
            plan = plan_for(rows, vocab * logits.element_size(), grad is not None, limits(logits.device.index))
        KERNELS[logits.dtype](
            rows, vocab, logits.data_ptr(), logits.stride(0),
            0 if grad is None else grad.data_ptr(), 0 if grad is None else grad.stride(0),
            target.data_ptr(), coefficients.data_ptr(), 0 if q is None else q.data_ptr(),
            scale, softcap, stats.data_ptr(), *plan, stream,
        )  # fmt: skip
    return stats
