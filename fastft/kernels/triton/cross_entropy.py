"""Masked cross-entropy of logits in Triton, each row kept in L2 between its two passes.

Two ways through a row, of the same pieces:

* resident: a program sums over a row's classes, whose lines stay in L2, then writes the gradient from the last
  class to the first, as what was read last is still there. Programs are as few as L2 has room for and take
  another row when done, so that ignored rows leave none without work.
* split: a few long rows go to several programs each; their sums are joined by a second kernel.

A row's positions count from the 16-byte boundary at or before it: class c is at `lower + c`, the target at
`hole`, the row ends before `upper`. So whole blocks move in vectors of 16 bytes whatever V is, and masks are
for the blocks that hold an end of the row or the target.
"""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastft.kernels.triton import on_device, refusal
from fastft.kernels.triton.row import LOWEST, combined, exp, extended, finish, transformed
from fastft.kernels.triton.tuning import LANES_BESIDE, MAX_PARTS, VECTOR, Plan, device_facts, plan_for

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FIELDS = tl.constexpr(6)  # of a part: top, total, moment, dot, left, and the target's logit
VARYING = ["rows", "parts", "blocks_each", "writers"]  # from batch to batch: they do not recompile


@triton.jit
def row_start(row, stride, VEC: tl.constexpr):
    """Offset of the boundary at or before a row, and the position of class 0 counted from there."""
    offset = row.to(tl.int64) * stride
    start = offset // VEC * VEC
    return start, (offset - start).to(tl.int32)


@triton.jit
def gradient_start(row, stride, lower, VEC: tl.constexpr, CONGRUENT: tl.constexpr):
    """Offset in DX from which class 0 is at `lower` as in X: a boundary where the strides are congruent."""
    offset = row.to(tl.int64) * stride
    if CONGRUENT:
        return offset // VEC * VEC
    else:
        return offset - lower


@triton.jit
def positions(block, LANES: tl.constexpr, VEC: tl.constexpr):
    """(LANES, VEC): each lane has the VEC neighbours of one vector."""
    return block * (LANES * VEC) + tl.arange(0, LANES)[:, None] * VEC + tl.arange(0, VEC)[None, :]


@triton.jit
def is_edge(block, lower, upper, hole, SIZE: tl.constexpr):
    """Whether a block holds an end of the row, or the position `hole`."""
    start = block * SIZE
    end = start + SIZE
    return (start < lower) | (end > upper) | ((start <= hole) & (hole < end))


@triton.jit
def load_q(Q, c, mask):
    if mask is None:
        return tl.load(Q + c)
    else:
        return tl.load(Q + c, mask=mask, other=0.0)


@triton.jit
def sums(
    X, Q, lower, upper, hole, first, last, scale, softcap,
    POLICY: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Per lane, the five numbers of blocks [first, last) without the target."""
    top = tl.full((LANES,), LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    moment = tl.zeros((LANES,), tl.float32)
    dot = tl.zeros((LANES,), tl.float32)
    left = tl.full((LANES,), float("-inf"), tl.float32)
    for b in range(first, last):
        i = positions(b, LANES, VEC)
        if is_edge(b, lower, upper, hole, LANES * VEC):
            mask = (i >= lower) & (i < upper) & (i != hole)
            z, _ = transformed(tl.load(X + i, mask=mask, other=0.0, eviction_policy=POLICY), scale, softcap)
            dot += tl.sum(z if Q is None else z * load_q(Q, i - lower, mask), 1)
            z = tl.where(mask, z, float("-inf"))
            top_z = tl.max(z, 1)
            left = tl.maximum(left, tl.max(tl.where(i < hole, z, float("-inf")), 1))
        else:
            z, _ = transformed(tl.load(X + i, eviction_policy=POLICY), scale, softcap)
            dot += tl.sum(z if Q is None else z * load_q(Q, i - lower, None), 1)
            top_z = tl.max(z, 1)
            left = tl.where(b * (LANES * VEC) < hole, tl.maximum(left, top_z), left)
        top, total, moment = extended(top, total, moment, z, top_z)
    return top, total, moment, dot, left


@triton.jit
def write_gradient(
    X, DX, Q, lower, upper, hole, first, last, factors, dx_y, scale, softcap, LANES: tl.constexpr, VEC: tl.constexpr
):
    """dx of blocks [first, last), the last one first, and `dx_y` at the target; DX may be X."""
    peak, weight, smooth = factors
    for k in range(first, last):
        b = last - 1 - (k - first)
        i = positions(b, LANES, VEC)
        if is_edge(b, lower, upper, hole, LANES * VEC):
            mask = (i >= lower) & (i < upper)
            x = tl.load(X + i, mask=mask, other=0.0, eviction_policy="evict_first")
            z, slope = transformed(x, scale, softcap)
            s = smooth if Q is None else smooth * load_q(Q, i - lower, mask)
            dx = tl.where(i == hole, dx_y, (weight * exp(z - peak) - s) * slope)
            tl.store(DX + i, dx.to(DX.dtype.element_ty), mask=mask, eviction_policy="evict_first")
        else:
            z, slope = transformed(tl.load(X + i, eviction_policy="evict_first"), scale, softcap)
            s = smooth if Q is None else smooth * load_q(Q, i - lower, None)
            dx = (weight * exp(z - peak) - s) * slope
            tl.store(DX + i, dx.to(DX.dtype.element_ty), eviction_policy="evict_first")


@triton.jit
def write_zeros(DX, lower, upper, first, last, LANES: tl.constexpr, VEC: tl.constexpr):
    zero = tl.zeros((LANES, VEC), DX.dtype.element_ty)
    for b in range(first, last):
        i = positions(b, LANES, VEC)
        if is_edge(b, lower, upper, -1, LANES * VEC):
            tl.store(DX + i, zero, mask=(i >= lower) & (i < upper), eviction_policy="evict_first")
        else:
            tl.store(DX + i, zero, eviction_policy="evict_first")


@triton.jit
def store_statistics(Stats, rows, values, mask):
    """A column of the (5, rows) statistics."""
    for k in tl.static_range(5):
        tl.store(Stats + k * rows, values[k], mask=mask)


@triton.jit(do_not_specialize=VARYING)
def sums_kernel(
    X, Target, Q, Parts, rows, vocab, x_stride, scale, softcap, parts, blocks_each,
    POLICY: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Program (row, part), last row first, leaves in Parts what `FIELDS` counts of its blocks."""
    row = rows - 1 - tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    target = tl.load(Target + row)
    if target >= 0:
        start, lower = row_start(row, x_stride, VEC)
        upper = lower + vocab
        hole = lower + tl.minimum(target, vocab - 1).to(tl.int32)
        first = part * blocks_each
        last = tl.minimum(first + blocks_each, tl.cdiv(upper, LANES * VEC))
        numbers = combined(sums(X + start, Q, lower, upper, hole, first, last, scale, softcap, POLICY, LANES, VEC))
        out = Parts + (row.to(tl.int64) * parts + part) * FIELDS
        for k in tl.static_range(5):
            tl.store(out + k, numbers[k])
        tl.store(out + 5, tl.load(X + start + hole).to(tl.float32))


@triton.jit
def joined(Parts, row, parts, PARTS: tl.constexpr):
    """The target's logit, and the five numbers of a row from those of its parts."""
    part = tl.arange(0, PARTS)
    there = part < parts
    base = Parts + row.to(tl.int64) * parts * FIELDS
    at = base + part * FIELDS
    top = tl.load(at, mask=there, other=LOWEST)
    total = tl.load(at + 1, mask=there, other=0.0)
    moment = tl.load(at + 2, mask=there, other=0.0)
    dot = tl.load(at + 3, mask=there, other=0.0)
    left = tl.load(at + 4, mask=there, other=float("-inf"))
    return tl.load(base + 5), combined((top, total, moment, dot, left))


@triton.jit(do_not_specialize=VARYING)
def rows_kernel(
    X, DX, Target, Coefficients, Q, Stats, Parts, Ticket, rows, vocab, x_stride, dx_stride, scale, softcap,
    parts, writers, blocks_each, LANES: tl.constexpr, VEC: tl.constexpr, CONGRUENT: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Statistics and gradient of rows, each written by `writers` programs.

    Resident: Parts is None, and programs, however many, draw rows, last row first, by Ticket (1,), 0 at the
    launch. Split: Parts is from `sums_kernel`, Ticket is None, and there is a program for each writer.
    """
    POLICY: tl.constexpr = "evict_first" if DX is None else "evict_last"
    item = tl.program_id(0) if Ticket is None else tl.atomic_add(Ticket, 1, sem="relaxed")
    while item < rows * writers:
        row = item // writers
        if Parts is None:
            row = rows - 1 - row
        writer = item % writers
        target = tl.load(Target + row)
        start, lower = row_start(row, x_stride, VEC)
        upper = lower + vocab
        first = writer * blocks_each
        last = tl.minimum(first + blocks_each, tl.cdiv(upper, LANES * VEC))
        if target < 0:
            store_statistics(Stats + row, rows, (0.0, 0.0, 0.0, 0.0, 0.0), writer == 0)
            if DX is not None:
                dx = DX + gradient_start(row, dx_stride, lower, VEC, CONGRUENT)
                write_zeros(dx, lower, upper, first, last, LANES, VEC)
        else:
            x = X + start
            y = tl.minimum(target, vocab - 1).to(tl.int32)
            hole = lower + y
            if Parts is None:
                x_y = tl.load(x + hole)
                others = combined(sums(x, Q, lower, upper, hole, first, last, scale, softcap, POLICY, LANES, VEC))
            else:  # another writer may have overwritten the target's logit
                x_y, others = joined(Parts, row, parts, PARTS)
            z_y, slope_y = transformed(x_y, scale, softcap)
            stats, factors, dz_y = finish(Coefficients + 3 * row, Q, vocab, target, y, z_y, others)
            store_statistics(Stats + row, rows, stats, writer == 0)
            if DX is not None:
                dx = DX + gradient_start(row, dx_stride, lower, VEC, CONGRUENT)
                dx_y = dz_y * slope_y
                write_gradient(x, dx, Q, lower, upper, hole, first, last, factors, dx_y, scale, softcap, LANES, VEC)
        item = rows * writers if Ticket is None else tl.atomic_add(Ticket, 1, sem="relaxed")


def why_not(logits: Tensor) -> str | None:
    if why := refusal(logits):
        return why
    return None if logits.dtype in DTYPES else f"dtype is {logits.dtype}"


def cross_entropy(
    logits: Tensor, target: Tensor, coefficients: Tensor, q: Tensor | None, scale: float, softcap: float,
    grad: Tensor | None, plan: Plan | None = None,
) -> Tensor:  # fmt: skip
    """Statistics (5, M) fp32: nll, lse, q.z, entropy, correct; `grad` (M, V) is written, may be `logits`.

    `target` (M,) int64, negative for a row to skip, V or more for one out of range (its nll is NaN); `coefficients`
    (M, 3) fp32; `q` (V,) fp32. Runs on the current stream and waits for nothing. `plan` is for tuning.
    """
    rows, vocab = logits.shape
    if vocab > 1 and logits.stride(1) != 1:
        logits = logits.contiguous()
    if grad is not None and vocab > 1 and grad.stride(1) != 1:
        raise ValueError(f"grad has strides {grad.stride()}; expected 1 in its last dimension")
    target, coefficients = target.contiguous(), coefficients.float().contiguous()
    q = None if q is None else q.float().contiguous()
    stats = torch.empty(5, rows, dtype=torch.float32, device=logits.device)
    if not logits.numel():
        return stats.copy_(torch.where(target < 0, 0.0, torch.nan))
    if plan is None:
        plan = plan_for(rows, vocab * logits.element_size(), grad is not None, device_facts(logits.device))
    vec = VECTOR // logits.element_size()
    x_stride, dx_stride = logits.stride(0), 0 if grad is None else grad.stride(0)
    congruent = grad is None or (x_stride - dx_stride) % vec == 0
    lanes, warps = plan.block.lanes, plan.block.warps
    if q is not None or softcap or not congruent:
        lanes = min(lanes, LANES_BESIDE * warps)
    block = {"LANES": lanes, "VEC": vec, "num_warps": warps}
    options = (None if scale == 1.0 else float(scale), float(softcap) if softcap else None)
    parts = ticket = None
    blocks_each = triton.cdiv(vocab + vec - 1, lanes * vec * max(plan.parts, 1))
    with on_device(logits):
        if plan.parts:
            parts = torch.empty(rows, plan.parts, FIELDS.value, dtype=torch.float32, device=logits.device)
            sums_kernel[(rows * plan.parts,)](
                logits, target, q, parts, rows, vocab, x_stride, *options, plan.parts, blocks_each,
                POLICY="evict_first" if grad is None else "evict_last", **block,
            )  # fmt: skip
        else:
            ticket = torch.zeros(1, dtype=torch.int32, device=logits.device)
        writers = 1 if grad is None else max(plan.parts, 1)
        rows_kernel[(rows * writers if plan.parts else plan.programs,)](
            logits, grad, target, coefficients, q, stats, parts, ticket, rows, vocab, x_stride, dx_stride, *options,
            plan.parts, writers, blocks_each, CONGRUENT=congruent, PARTS=MAX_PARTS, **block,
        )  # fmt: skip
    return stats
