"""The head's GEMMs and the loss kernel, in chunks of supervised rows.

N positions, M supervised, D hidden, V vocabulary: x (N, D), w (V, D), z = x w^T (M, V), dz in z's memory.
"""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from fastft.losses.cross_entropy import kernel_for, normalized
from fastft.losses.gradients import Gradients, room, row_scale, wide
from fastft.losses.reduction import combine

log = logging.getLogger("fastft")

CPU_LEAST, CPU_MOST = 64 << 20, 256 << 20  # bytes
GPU_SHARE = 4  # one part of the free memory
ROW_MULTIPLE = 128  # rows of a GEMM tile


class Plan(NamedTuple):
    """How a call runs, decided before it; plain values, so that a compiled graph holds them as constants."""

    mode: str  # "stats": no gradient now | "store": keep dz, GEMMs in backward | "grads": dx, dw, dbias now
    need_x: bool
    need_w: bool
    need_bias: bool
    budget: int  # bytes for z


class Result(NamedTuple):
    """What a mode does not make is an empty tensor."""

    loss: Tensor  # () or (K,)
    stats: Tensor  # (5, K)
    dz: Tensor  # (M, V)
    dx: Tensor  # (N, D)
    dw: Tensor  # (V, D)
    dbias: Tensor  # (V,)


def plan(x: Tensor, w: Tensor, bias: Tensor | None, rows: int | None, *, budget: int | None, reduced: bool) -> Plan:
    """`rows` is M, or None where only the op will know it."""
    need_x, need_w, need_bias = (torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, w, bias))
    budget = default_budget(x.device, w.numel()) if budget is None else budget
    fits = rows is not None and rows * w.shape[0] * x.element_size() <= budget
    by_chunk = "grads" if reduced else "stats"
    mode = "stats" if not (need_x or need_w or need_bias) else "store" if fits else by_chunk
    return Plan(mode, need_x, need_w, need_bias, budget)


def supervised(labels: Tensor, ignore_index: int, valid: Tensor | None) -> Tensor:
    """Positions (M,) of the supervised tokens among labels (N,); `valid` is trusted where a look would synchronise."""
    if valid is None:
        return (labels != ignore_index).nonzero()[:, 0]
    return valid[labels[valid] != ignore_index] if labels.device.type == "cpu" else valid


def default_budget(device: torch.device, weights: int) -> int:
    """On the CPU the size of dw in fp32, which each chunk reads and writes: more rows gain little beyond that."""
    if device.type == "cuda" and not torch.compiler.is_compiling():
        return max(CPU_MOST, torch.cuda.mem_get_info(device)[0] // GPU_SHARE)
    return min(CPU_MOST, max(CPU_LEAST, 4 * weights))


def chunk_rows(rows: int, row_bytes: int, budget: int) -> int:
    """Rows per chunk: equal chunks within the budget, in whole GEMM tiles where a tile fits."""
    most = max(1, budget // max(row_bytes, 1))
    if most >= rows:
        return max(rows, 1)
    chunks = -(-rows // most)
    even = -(-rows // chunks)
    tiles = -(-even // ROW_MULTIPLE) * ROW_MULTIPLE
    return tiles if tiles <= most else even


def allocate(rows: int, x: Tensor, vocab: int, *, whole: bool) -> Tensor:
    """Room for (rows, V), or unless `whole` for as many rows as memory allows, halving."""
    while True:
        try:
            return room(x, rows, vocab)
        except RuntimeError as error:  # torch.OutOfMemoryError on a GPU
            if whole or rows == 1 or not is_out_of_memory(error):
                raise
            rows = -(-rows // 2)
            log.warning("out of memory for logits: going on with chunks of %d rows", rows)


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def run(
    x: Tensor, w: Tensor, bias: Tensor | None, labels: Tensor, rows: Tensor, q: Tensor | None, valid: Tensor | None,
    scale: float, softcap: float, ignore_index: int, reduced: bool, p: Plan, backend: str,
) -> Result:  # fmt: skip
    """`labels` (K,) and `rows` (K, 3) belong to positions `valid` (K,), or to all N.

    In mode "store" each of them is a row of dz; in the others those with `ignore_index` are left out.
    """
    kernel = kernel_for(x, backend)
    labels = normalized(labels, w.shape[0], ignore_index, valid)
    stats, kept = rows.new_zeros(5, len(labels)), labels >= 0
    compact = p.mode != "store" and not bool(kept.all())
    if compact:
        index = kept.nonzero()[:, 0]
        labels, valid = labels[index], index if valid is None else valid[index]
    part_rows, part_stats = (rows[index], stats[:, index]) if compact else (rows, stats)
    r, m = row_scale(part_rows, x.dtype), len(labels)
    kernel_rows = part_rows if r is None else part_rows / r

    z = allocate(chunk_rows(m, len(w) * x.element_size(), p.budget), x, len(w), whole=p.mode == "store")
    needs = (p.need_x, p.need_w, p.need_bias) if p.mode == "grads" else (False, False, False)
    grads = Gradients(x, w, needs, m, -(-m // len(z)))
    for start in range(0, m, len(z)):
        part = slice(start, start + len(z))
        xs = x[part] if valid is None else x[valid[part]]
        zs = z[: len(xs)]
        logits(xs, w, bias, out=zs)
        part_stats[:, part] = kernel.cross_entropy(
            zs, labels[part], kernel_rows[part], q, scale, softcap, None if p.mode == "stats" else zs
        )
        if p.mode == "grads":
            grads.add(zs, xs, part, None if r is None else r[part])
    if compact:
        stats[:, index] = part_stats
    dz = z[:m] if p.mode == "store" else x.new_empty(0)
    return Result(combine(stats, rows, reduced), stats, dz, *grads.finish(valid, len(x), wide(x.dtype)))


def logits(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    return torch.mm(x, w.t(), out=out) if bias is None else torch.addmm(bias, x, w.t(), out=out)


def spread_tokens(values: Tensor, valid: Tensor | None, n: int) -> Tensor:
    """(..., K) to (..., N), zero where the position is not in `valid`."""
    return values if valid is None else values.new_zeros(*values.shape[:-1], n).index_copy(-1, valid, values)
