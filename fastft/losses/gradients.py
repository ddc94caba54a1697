"""dx, dw and dbias from dz: M rows, D hidden, V vocabulary; x (M, D), w (V, D), dz (M, V).

fp16 alone needs care: gradients of a mean over many tokens lie below its range. There dz is kept divided by a
power of two per row, and products are fp32 until the upstream gradient is known.
"""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastft import dispatch
from fastft.losses.cross_entropy import is_one, rescale, room
from fastft.losses.parallel import group_of

FEW = {"cpu": 2}  # chunks whose products may be added in bf16, for memory; beyond, rounding each sum would show
ROWS_BACKENDS = ("cuda", "triton", "reference")  # best first
FP16_ROOM = 2.0**10  # where |dz| of a row may reach, of fp16's 65504
LARGEST_LSE = 128.0
ROWS = 128


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of products that the upstream gradient will still scale."""
    return torch.float32 if dtype == torch.float16 else dtype


def row_scale(rows: Tensor, dtype: torch.dtype) -> Tensor | None:
    """r (M, 1), powers of two by which dz is to be divided for fp16; `rows` are the coefficients (M, 3)."""
    if dtype != torch.float16:
        return None
    label, smooth, lse_square = rows.abs().unbind(1)
    largest = label + smooth + 2.0 * LARGEST_LSE * lse_square
    return torch.exp2(torch.frexp(largest).exponent.to(rows.dtype))[:, None] / FP16_ROOM


def rows_kernel(x: Tensor) -> Any:
    """`compact`, `gather_rows` and `scatter_rows` where x is; the same bits from every backend."""
    return dispatch.pick("rows", ROWS_BACKENDS, "auto", x)


@functools.cache
def adds_to_wider_sums(device: torch.device) -> bool:
    """Whether torch adds a product of bf16 matrices to an fp32 sum: on CUDA, and not in every version."""
    one = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
    try:
        torch.addmm(one.float(), one, one, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True


class Gradients:
    """Sums over chunks of rows; what is not needed is an empty tensor."""

    def __init__(
        self, x: Tensor, w: Tensor, needs: tuple[bool, bool, bool], m: int, chunks: int, group: str = "",
        row_ids: Tensor | None = None,
    ) -> None:  # fmt: skip
        """`x` only for its dtype and device; `m` rows will come in `chunks`; w is a part where there is a `group`.

        dw is (V, D), or (R, D) for the rows `row_ids` (R,) alone.
        """
        self.need_x, self.need_w, self.need_bias = needs
        self.dtype, self.group, self.row_ids = x.dtype, group, row_ids
        self.reductions: list[dist.Work] = []
        few = FEW.get(x.device.type, 1)
        sums = torch.float32 if x.dtype == torch.bfloat16 and chunks > few else wide(x.dtype)
        self.w = w.to(wide(x.dtype)) if self.need_x else w
        self.dx = x.new_empty(m, w.shape[1], dtype=wide(x.dtype)) if self.need_x else x.new_empty(0)
        shape = w.shape if row_ids is None else (len(row_ids), w.shape[1])
        self.dw = room(x, *shape, dtype=sums) if self.need_w else x.new_empty(0)
        self.dbias = x.new_zeros(len(w) if self.need_bias else 0, dtype=torch.promote_types(x.dtype, torch.float32))
        self.widens = self.need_w and sums != wide(x.dtype)
        in_place = self.widens and adds_to_wider_sums(x.device)
        self.product = room(x, *shape) if self.widens and not in_place else None
        if m == 0:
            self.dw.zero_()

    def add(self, dz: Tensor, x: Tensor, part: slice, scale: Tensor | None, g: Tensor | float = 1.0) -> None:
        """One chunk, the rows `part`: dz holds dz / scale, and `g`, a scalar or (M, 1), is the upstream gradient."""
        if scale is not None:
            dz, x, g = dz.float() * (scale * g), x.float(), 1.0
        if self.need_x:
            dx = self.dx[part]
            torch.mm(dz, self.w, out=dx)
            if not is_one(g):
                dx.mul_(g)
            if self.group:
                self.reductions.append(dist.all_reduce(dx, group=group_of(self.group), async_op=True))
        if self.need_w:
            dz_of_rows = dz if self.row_ids is None else dz[:, self.row_ids]
            self._add_to_dw(dz_of_rows, rescale(x, g), first=part.start == 0)
        if self.need_bias:
            self.dbias += column_sum(dz, g)

    def _add_to_dw(self, dz: Tensor, x: Tensor, first: bool) -> None:
        if self.product is None:
            beta = 0 if first else 1
            if self.widens:
                torch.addmm(self.dw, dz.t(), x, self.dw.dtype, beta=beta, out=self.dw)
            else:
                self.dw.addmm_(dz.t(), x, beta=beta)
            return
        torch.mm(dz.t(), x, out=self.product)
        if first:
            self.dw.copy_(self.product)
        else:
            self.dw.add_(self.product)

    def finish(self, valid: Tensor | None, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """dx (N, D), dw and dbias in `dtype`."""
        for reduction in self.reductions:
            reduction.wait()
        dx = spread(self.dx, valid, n) if self.need_x else self.dx
        return dx.to(dtype), self.dw.to(dtype), self.dbias.to(dtype)


def column_sum(dz: Tensor, g: Tensor | float) -> Tensor:
    """sum_i g_i dz_i in at least fp32."""
    dtype = torch.promote_types(dz.dtype, torch.float32)
    if isinstance(g, float) or g.dim() == 0:
        return dz.sum(0, dtype=dtype) * g
    total = dz.new_zeros(dz.shape[1], dtype=dtype)
    for start in range(0, len(dz), ROWS):
        total += (dz[start : start + ROWS] * g[start : start + ROWS]).sum(0, dtype=dtype)
    return total


def gathered(x: Tensor, valid: Tensor | None, kept: Tensor) -> Tensor:
    """x (N, D) at `valid` (M,) or whole; zero rows where not `kept` (M,)."""
    return x if valid is None else rows_kernel(x).gather_rows(x, torch.where(kept, valid, -1))


def spread(rows: Tensor, valid: Tensor | None, n: int) -> Tensor:
    """(M, D) to (N, D), zero where the position is not in `valid`, which ascends up to trailing -1s."""
    return rows if valid is None else rows_kernel(rows).scatter_rows(rows, valid, n)
