"""AdamW on chosen rows of a table in Triton, a program per row; contract: kernels/reference/row_update.py.

Maths as in csrc/math/adamw.h. A row without a slot has m = v = 0, of which nothing is read or written: catching up
with it is the product of its weight decays. Leap (K, 9), Steps (until, 4) and a step's numbers as in fastft/optim.
"""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastft.kernels.triton import on_device, refusal
from fastft.kernels.triton.tuning import row_block

CLOSE = tl.constexpr(0.1)  # as in fastft/optim/leap.py
LARGEST = tl.constexpr(3.4028234663852886e38)
VARYING = ["until", "seed"]  # from step to step: they do not recompile


@triton.jit
def adamw_step(p, m, v, g, Step, beta1_rest, beta2, beta2_rest, eps):
    shrink, size, correction = tl.load(Step), tl.load(Step + 1), tl.load(Step + 2)
    m += beta1_rest * (g - m)
    v = v * beta2 + beta2_rest * g * g
    move = size * correction * m / (tl.sqrt(v) + eps * correction)
    return p * shrink - tl.where(m == 0.0, 0.0, move), m, v  # eps may be 0


@triton.jit
def adamw_leap(p, m, v, Leap, eps):
    """p, m and v at the end, and where that is good enough."""
    x = tl.sqrt(v)
    x1, x2 = x + eps * tl.load(Leap + 3), x + eps * tl.load(Leap + 4)
    move = m * (tl.load(Leap + 1) * x2 + tl.load(Leap + 2) * x1) / (x1 * x2)
    idle = m == 0.0
    close = (eps * tl.load(Leap + 5) <= (x + eps * tl.load(Leap + 6)) * CLOSE) | idle
    p = p * tl.load(Leap) - tl.where(idle, 0.0, move)
    return p, m * tl.load(Leap + 7), v * tl.load(Leap + 8), close


@triton.jit
def replayed(p, m, v, Steps, first, until, beta1_rest, beta2, beta2_rest, eps):
    for j in range(first, until):
        p, m, v = adamw_step(p, m, v, 0.0, Steps + j * 4, beta1_rest, beta2, beta2_rest, eps)
    return p, m, v


@triton.jit
def stochastic(p, seed, i):
    """fp32 with the bits of a bf16, up or down at random so that the mean is p."""
    bits = p.to(tl.int32, bitcast=True) + (tl.randint(seed, i) & 0xFFFF).to(tl.int32)
    return tl.where(tl.abs(p) <= LARGEST, (bits & -65536).to(tl.float32, bitcast=True), p)


@triton.jit(do_not_specialize=VARYING)
def adamw_kernel(
    Ids, Table, Last, Slot, M, V, Master, Steps, Leap, Grad, Out, Scale, FoundInf, stride, WIDTH, until, seed,
    beta1_rest, beta2, beta2_rest, eps, STOCHASTIC: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Row Ids[k] after `until` steps without a gradient and one with Grad[k]: into Out[k], or in place."""
    if FoundInf is not None and tl.load(FoundInf) != 0.0:
        return
    k = tl.program_id(0).to(tl.int64)
    row = tl.load(Ids + k)
    first = tl.load(Last + row)
    slot = tl.load(Slot + row).to(tl.int64)
    for start in range(0, WIDTH, COLUMNS):
        c = start + tl.arange(0, COLUMNS)
        inside = c < WIDTH
        state = inside & (slot >= 0)
        m = tl.load(M + slot * WIDTH + c, mask=state, other=0.0)
        v = tl.load(V + slot * WIDTH + c, mask=state, other=0.0)
        if Master is None:
            p = tl.load(Table + row * stride + c, mask=inside, other=0.0).to(tl.float32)
        else:
            p = tl.load(Table + row * stride + c, mask=inside & (slot < 0), other=0.0).to(tl.float32)
            p = tl.where(slot < 0, p, tl.load(Master + slot * WIDTH + c, mask=state, other=0.0))
        if first < until:
            if Leap is None:
                p, m, v = replayed(p, m, v, Steps, first, until, beta1_rest, beta2, beta2_rest, eps)
            else:
                short, m_end, v_end, close = adamw_leap(p, m, v, Leap + k * 9, eps)
                if tl.min(close.to(tl.int32), 0) == 0:
                    p, m, v = replayed(p, m, v, Steps, first, until, beta1_rest, beta2, beta2_rest, eps)
                p, m, v = tl.where(close, short, p), m_end, v_end
        if Out is not None:
            tl.store(Out + k * WIDTH + c, p.to(Out.dtype.element_ty), mask=inside)
        else:
            if Grad is not None:
                g = tl.load(Grad + k * WIDTH + c, mask=inside, other=0.0).to(tl.float32)
                if Scale is not None:
                    g *= tl.load(Scale)
                p, m, v = adamw_step(p, m, v, g, Steps + until * 4, beta1_rest, beta2, beta2_rest, eps)
            tl.store(M + slot * WIDTH + c, m, mask=state)
            tl.store(V + slot * WIDTH + c, v, mask=state)
            if Master is not None:
                tl.store(Master + slot * WIDTH + c, p, mask=state)
            if STOCHASTIC:
                p = stochastic(p, seed, k * WIDTH + c)
            tl.store(Table + row * stride + c, p.to(Table.dtype.element_ty), mask=inside)
    if Out is None:
        tl.debug_barrier()  # a warp may still have to read Last
        tl.store(Last + row, until if Grad is None else until + 1)


def why_not(t: Any, rule: Any) -> str | None:
    return refusal(t.table) or t.why_not_fused(rule)


def read_rows(t: Any, ids: Tensor, rule: Any, steps: Any, leap: Any, groups: Any = None) -> Tensor:
    out = torch.empty(len(ids), t.table.shape[1], dtype=t.table.dtype, device=t.table.device)
    launch(t, ids, rule, steps, leap, None, out)
    return out if groups is None else groups.spread(out)  # a block to all places of a common row would be the last


def step_rows(
    t: Any, ids: Tensor, grad: Tensor | None, rule: Any, steps: Any, leap: Any, scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    t.fill()
    launch(t, ids, rule, steps, leap, grad, None, scale, found_inf)


def launch(
    t: Any, ids: Tensor, rule: Any, steps: Any, leap: Any, grad: Tensor | None, out: Tensor | None,
    scale: Tensor | None = None, found_inf: Tensor | None = None,
) -> None:  # fmt: skip
    """Nothing waits for the device."""
    if not len(ids) or not t.table.shape[1]:
        return
    rounding = t.rounding == "stochastic" and t.table.dtype == torch.bfloat16 and out is None
    seed = int(torch.randint(1 << 31, (), device="cpu")) if rounding else 0
    columns, warps = row_block(t.table.shape[1])
    with on_device(t.table):
        adamw_kernel[(len(ids),)](
            ids.contiguous(), t.table, t.last, t.slot, *t.buffers, t.master, steps.matrix(t.table.device),
            None if leap is None else leap.rows(t.last, ids), None if grad is None else grad.contiguous(), out, scale,
            found_inf, t.table.stride(0), t.table.shape[1], len(steps) - (grad is not None), seed, 1 - rule.beta1,
            rule.beta2, 1 - rule.beta2, rule.eps, STOCHASTIC=rounding, COLUMNS=columns, num_warps=warps,
        )  # fmt: skip
