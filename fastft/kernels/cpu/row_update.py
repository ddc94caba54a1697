"""Checks, pointers and the output of csrc/cpu/row_update.cpp; contract: kernels/reference/row_update.py."""

from typing import Any

import torch
from torch import Tensor

from fastft import _cpu

KERNELS = {
    torch.float32: _cpu.adamw_rows_float32,
    torch.bfloat16: _cpu.adamw_rows_bfloat16,
    torch.float16: _cpu.adamw_rows_float16,
}


def why_not(t: Any, rule: Any) -> str | None:
    if t.table.device.type != "cpu":
        return f"device is {t.table.device}"
    if t.rounding == "stochastic" and t.table.dtype != torch.float32:
        return "stochastic rounding is not in C++"
    why: str | None = t.why_not_fused(rule)
    return why


def read_rows(t: Any, ids: Tensor, rule: Any, steps: Any, leap: Any, groups: Any = None) -> Tensor:
    out = torch.empty(len(ids if groups is None else groups.order), t.table.shape[1], dtype=t.table.dtype)
    launch(t, ids, rule, steps, leap, out=out, groups=groups)
    return out


def step_rows(
    t: Any, ids: Tensor, grad: Tensor | None, rule: Any, steps: Any, leap: Any, scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    if grad is None or found_inf is not None:
        t.fill()
    grad = None if grad is None else grad.to(t.table.dtype).contiguous()
    launch(t, ids, rule, steps, leap, grad=grad, scale=scale, found_inf=found_inf)
    t.filled = t.used


def launch(
    t: Any, ids: Tensor, rule: Any, steps: Any, leap: Any, *, grad: Tensor | None = None,
    out: Tensor | None = None, groups: Any = None, scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    ids, matrix, (m, v) = ids.contiguous(), steps.matrix(), t.buffers
    departures = 0 if leap is None else leap.departures.data_ptr()
    order, ends = (None, None) if groups is None else (groups.order.contiguous(), groups.ends.contiguous())
    KERNELS[t.table.dtype](
        len(ids), t.table.shape[1], ids.data_ptr(), t.table.data_ptr(), t.table.stride(0), t.last.data_ptr(),
        t.slot.data_ptr(), m.data_ptr(), v.data_ptr(), t.filled, pointer(t.master), matrix.data_ptr(),
        len(steps) - (grad is not None), departures, pointer(grad), pointer(out), pointer(order), pointer(ends),
        pointer(scale), pointer(found_inf), rule.beta1, rule.beta2, rule.eps, torch.get_num_threads(),
    )  # fmt: skip


def pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
