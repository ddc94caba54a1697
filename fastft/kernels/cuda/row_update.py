"""Checks, pointers and the output of csrc/cuda/row_update.cu; contract: kernels/reference/row_update.py."""

from typing import Any

import torch
from torch import Tensor

from fastft import _cuda
from fastft.kernels.cuda import launching_on, refusal

KERNELS = {
    torch.float32: _cuda.adamw_rows_float32,
    torch.bfloat16: _cuda.adamw_rows_bfloat16,
    torch.float16: _cuda.adamw_rows_float16,
}


def why_not(t: Any, rule: Any) -> str | None:
    if t.rounding == "stochastic" and t.table.dtype != torch.float32:
        return "stochastic rounding is not in CUDA C++"
    return t.why_not_fused(rule) or refusal(t.table)


def read_rows(t: Any, ids: Tensor, rule: Any, steps: Any, leap: Any, groups: Any = None) -> Tensor:
    out = torch.empty(len(ids), t.table.shape[1], dtype=t.table.dtype, device=t.table.device)
    launch(t, ids, rule, steps, leap, None, out)
    return out if groups is None else groups.spread(out)  # a block to all places of a common row would be the last


def step_rows(
    t: Any, ids: Tensor, grad: Tensor | None, rule: Any, steps: Any, leap: Any, scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    t.fill()
    grad = None if grad is None else grad.to(t.table.dtype).contiguous()
    launch(t, ids, rule, steps, leap, grad, None, scale, found_inf)


def launch(
    t: Any, ids: Tensor, rule: Any, steps: Any, leap: Any, grad: Tensor | None, out: Tensor | None,
    scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    """On the current stream; waits for nothing."""
    ids, matrix, (m, v) = ids.contiguous(), steps.matrix(t.table.device), t.buffers
    leap = None if leap is None else leap.rows(t.last, ids)
    with launching_on(t.table) as stream:
        KERNELS[t.table.dtype](
            len(ids), t.table.shape[1], ids.data_ptr(), t.table.data_ptr(), t.table.stride(0), t.last.data_ptr(),
            t.slot.data_ptr(), m.data_ptr(), v.data_ptr(), pointer(t.master), matrix.data_ptr(),
            len(steps) - (grad is not None), pointer(leap), pointer(grad), pointer(out), pointer(scale),
            pointer(found_inf), rule.beta1, rule.beta2, rule.eps, stream,
        )  # fmt: skip


def pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
