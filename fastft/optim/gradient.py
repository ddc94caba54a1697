"""Row gradients: sparse COO gradients of a table (V, D), made and summed deterministically."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastft import dispatch


class Groups(NamedTuple):
    """Positions (N,) by the row they read: touched[u] at order[ends[u - 1] : ends[u]]."""

    touched: Tensor  # (U,), ascending
    order: Tensor  # (N,), ascending within a group
    ends: Tensor  # (U,)

    def spread(self, rows: Tensor) -> Tensor:
        """(U, D) to the positions, (N, D)."""
        group = torch.empty_like(self.order)
        counts = self.ends.diff(prepend=self.ends.new_zeros(1))
        group[self.order] = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return rows.index_select(0, group)

    def without(self, row: int | None) -> "Groups":
        if row is None:
            return self
        kept, counts = self.touched != row, self.ends.diff(prepend=self.ends.new_zeros(1))
        return Groups(self.touched[kept], self.order[kept.repeat_interleave(counts)], counts[kept].cumsum(0))


def check_in_range(ids: Tensor, rows: int) -> None:
    """Raises IndexError where ids (N,) on the CPU are not in [0, rows); on a GPU torch's own indexing asserts."""
    if ids.device.type == "cpu":
        position = dispatch.pick("grouping", dispatch.BACKENDS, "auto", ids, rows).first_outside(ids, rows)
        if position < len(ids):
            raise IndexError(f"ids[{position}] (flattened) is {int(ids[position])}; expected 0..{rows - 1}")


def grouped(ids: Tensor, rows: int) -> Groups:
    """Of ids (N,). Raises as `check_in_range`."""
    check_in_range(ids, rows)
    return Groups(*dispatch.pick("grouping", dispatch.BACKENDS, "auto", ids, rows).grouped(ids, rows))


def row_sums(groups: Groups, grad: Tensor) -> Tensor:
    """(U, D) from what was read of a table, (N, D): its sum for each touched row, in fp32 (fp64 for fp64), in order of
    position.
    """
    kernel = dispatch.pick("segment_sum", dispatch.BACKENDS, "auto", grad)
    sums: Tensor = kernel.segment_sum(grad, groups.order, groups.ends)
    return sums


def row_gradient(groups: Groups, grad: Tensor, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Gradient of a table of `size` (V, D) from that of what was read of it, (N, D).

    Coalesced: each touched row once, its values summed in fp32 (fp64 for fp64), in order of position.
    """
    values = row_sums(groups, grad).to(dtype)
    return torch.sparse_coo_tensor(groups.touched[None], values, size, is_coalesced=True, check_invariants=False)


def coalesced(grad: Tensor, known: bool = False) -> Tensor:
    """The same gradient with each row once, ascending, which it may be `known` to have; what several micro-batches left
    of a row is summed.
    """
    if grad.is_coalesced():
        return grad
    ids = grad._indices()[0]
    if known or bool((ids.diff() > 0).all()):
        return grad._coalesced_(True)
    return row_gradient(grouped(ids, grad.shape[0]), grad._values(), grad.shape, grad.dtype)
