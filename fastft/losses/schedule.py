"""The head's GEMMs and the loss kernel, in chunks of supervised rows.

N positions, M supervised, D hidden, V vocabulary: x (N, D), w (V, D), z = x w^T (M, V), dz in z's memory.
"""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from fastft.losses.cross_entropy import kernel_for, normalized, room
from fastft.losses.gradients import Gradients, gathered, row_scale, rows_kernel, wide
from fastft.losses.parallel import Kernel, Shard
from fastft.losses.reduction import combine

log = logging.getLogger("fastft")

CPU_LEAST, CPU_MOST = 64 << 20, 256 << 20  # bytes
GPU_SHARE = 4  # one part of the free memory
ALL_GPU_SHARE = 16  # one part of the whole, where several processes must choose alike
UNDECIDED = -1  # left to the op: a graph may be compiled long before it runs
ROW_MULTIPLE = 128  # rows of a GEMM tile
ROW_ALIGNMENT = {"cuda": 16, "xpu": 16}  # bytes, without which GEMMs of half types are several times slower


class Plan(NamedTuple):
    """How a call runs, decided before it; plain values, so that a compiled graph holds them as constants."""

    mode: str  # "stats": no gradient now | "store": keep dz, GEMMs in backward | "grads": dx, dw, dbias now
    need_x: bool
    need_w: bool
    need_bias: bool
    compacts: bool  # the op finds the supervised rows itself
    budget: int  # bytes for z, or UNDECIDED
    group: str  # these three: see `parallel.Shard`
    first: int
    vocab: int

    @property
    def shard(self) -> Shard:
        return Shard(self.group, self.first, self.vocab)


class Result(NamedTuple):
    """What a mode does not make is an empty tensor."""

    loss: Tensor  # () or (K,)
    stats: Tensor  # (5, K)
    dz: Tensor  # (M, V)
    dx: Tensor  # (N, D)
    dw: Tensor  # (V, D), or (R, D) for chosen rows
    dbias: Tensor  # (V,)


def plan(
    x: Tensor, w: Tensor, bias: Tensor | None, rows: int | None, shard: Shard, *, budget: int | None, reduced: bool
) -> Plan:
    """`rows` is M, or None where only the op will know it. `w` is what the head's gradient goes to."""
    need_x, need_w, need_bias = (torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, w, bias))
    if budget is None:
        budget = UNDECIDED if rows is None else default_budget(x, shard)
    fits = rows is not None and rows * shard.most * x.element_size() <= budget
    by_chunk = "grads" if reduced else "stats"
    mode = "stats" if not (need_x or need_w or need_bias) else "store" if fits else by_chunk
    return Plan(mode, need_x, need_w, need_bias, rows is None, budget, *shard)


def supervised(labels: Tensor, ignore_index: int, valid: Tensor | None) -> Tensor | None:
    """Positions (M,) of the supervised tokens among labels (N,), or None for all of them.

    A given `valid` is trusted on a GPU, where a look would synchronise: it may end in -1s and hold ignored tokens.
    """
    if valid is not None and labels.device.type != "cpu":
        return valid
    found = rows_kernel(labels).compact(labels if valid is None else at(labels, valid, ignore_index), ignore_index)
    found = found if valid is None else valid[found]
    return None if len(found) == len(labels) else found


def at(values: Tensor, valid: Tensor, fill: float) -> Tensor:
    """values (N,) at `valid` (K,), `fill` where that is -1."""
    return torch.where(valid < 0, fill, values[valid.clamp(min=0)])


def default_budget(x: Tensor, shard: Shard) -> int:
    """On the CPU the size of dw in fp32, which each chunk reads and writes: more rows gain little beyond that."""
    if x.device.type != "cuda":
        return min(CPU_MOST, max(CPU_LEAST, 4 * shard.most * x.shape[1]))
    free, total = torch.cuda.mem_get_info(x.device)
    free += torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
    return max(CPU_MOST, total // ALL_GPU_SHARE if shard.group else free // GPU_SHARE)


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
    multiple = max(1, ROW_ALIGNMENT.get(x.device.type, 0) // x.element_size())
    while True:
        try:
            return room(x, rows, -(-vocab // multiple) * multiple)[:, :vocab]
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
    row_ids: Tensor | None = None,
) -> Result:  # fmt: skip
    """`labels` (K,) and `rows` (K, 3) belong to positions `valid` (K,), or to all N."""
    kernel = kernel_for(x, backend)
    kernel = Kernel(kernel, p.shard) if p.group else kernel
    labels = normalized(labels, p.vocab, ignore_index, valid)
    stats = rows.new_zeros(5, len(labels))
    compacts = p.compacts and (valid is None or valid.device.type == "cpu")  # elsewhere it is trusted
    if compacts:
        index = (labels >= 0).nonzero()[:, 0]
        labels, valid = labels[index], index if valid is None else valid[index]
    part_rows, part_stats = (rows[index], stats[:, index]) if compacts else (rows, stats)
    r, m = row_scale(part_rows, x.dtype), len(labels)
    kernel_rows = part_rows if r is None else part_rows / r

    budget = default_budget(x, p.shard) if p.budget == UNDECIDED else p.budget
    size = chunk_rows(m, p.shard.most * x.element_size(), budget)
    z = allocate(size, x, len(w), whole=p.mode == "store" or bool(p.group))
    needs = (p.need_x, p.need_w, p.need_bias) if p.mode == "grads" else (False, False, False)
    grads = Gradients(x, w, needs, m, -(-m // len(z)), p.group, row_ids)
    for start in range(0, m, len(z)):
        part = slice(start, start + len(z))
        xs = x[part] if valid is None else gathered(x, valid[part], labels[part] >= 0)
        zs = z[: len(xs)]
        logits(xs, w, bias, out=zs)
        part_stats[:, part] = kernel.cross_entropy(
            zs, labels[part], kernel_rows[part], q, scale, softcap, None if p.mode == "stats" else zs
        )
        if p.mode == "grads":
            grads.add(zs, xs, part, None if r is None else r[part])
    if compacts:
        stats[:, index] = part_stats
    dz = z[:m] if p.mode == "store" else x.new_empty(0)
    return Result(combine(stats, rows, reduced), stats, dz, *grads.finish(valid, len(x), wide(x.dtype)))


def logits(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    return torch.mm(x, w.t(), out=out) if bias is None else torch.addmm(bias, x, w.t(), out=out)


def spread_tokens(values: Tensor, valid: Tensor | None, n: int) -> Tensor:
    """(..., K) to (..., N), zero where the position is not in `valid`."""
    if valid is None:
        return values
    slot = torch.where(valid < 0, n, valid)
    return values.new_zeros(*values.shape[:-1], n + 1).index_copy(-1, slot, values)[..., :n]
