"""Positions by the id they hold, in plain torch, on any device."""

import torch
from torch import Tensor


def why_not(ids: Tensor, rows: int) -> str | None:
    return None


def first_outside(ids: Tensor, rows: int) -> int:
    """The first position of an id of `ids` (N,) that is not in [0, rows), or N. Waits for the device."""
    outside = ((ids < 0) | (ids >= rows)).nonzero()
    return int(outside[0]) if len(outside) else len(ids)


def grouped(ids: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The different ids of `ids` (N,), each in [0, rows), ascending (U,); the positions of each, ascending, one after
    the other (N,); and where those of each end (U,).
    """
    ids, order = ids.sort(stable=True)
    touched, counts = torch.unique_consecutive(ids, return_counts=True)
    return touched, order, counts.cumsum(0)
