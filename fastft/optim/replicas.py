"""Row gradients of data-parallel replicas: averaged or summed over the union of the rows that any of them touched."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastft.optim.clipping import apply_factor
from fastft.optim.gradient import coalesced


def average_row_gradients(parameters: Iterable[Tensor], group: Any = None) -> None:
    """Replace each sparse `.grad` by its mean over the processes of `group`; dense ones are DDP's own.

    Three collectives per table: how many rows each process touched, which, and the sum of the gradients of their
    union, dense and compact. Every process ends with the same bits, so that replicas stay equal. A process without a
    gradient for a table (no token read it) takes part with none. Call it after backward, before clipping and the step,
    on every process; `DistributedDataParallel` is to be told to leave the tables alone (`leave_to_rows`).
    """
    parameters = list(parameters)
    sum_row_gradients(parameters, group)
    for p in parameters:
        if p.grad is not None and p.grad.is_sparse:
            p.grad._values().div_(dist.get_world_size(group))


@torch.no_grad()
def sum_row_gradients(parameters: Iterable[Tensor], group: Any = None) -> None:
    """`average_row_gradients` without the division: for losses whose denominator is that of all processes."""
    world = dist.get_world_size(group)
    for p in parameters:
        if p.grad is not None and not p.grad.is_sparse:
            continue
        apply_factor(p.grad)
        grad = None if p.grad is None else coalesced(p.grad)
        ids = torch.empty(0, dtype=torch.int64, device=p.device) if grad is None else grad._indices()[0]
        union = union_of(ids, world, group)
        if not len(union):
            continue
        total = torch.zeros(len(union), p.shape[1], dtype=p.dtype, device=p.device)
        if grad is not None:
            total[torch.searchsorted(union, ids)] = grad._values()
        dist.all_reduce(total, group=group)
        p.grad = torch.sparse_coo_tensor(union[None], total, p.shape, is_coalesced=True, check_invariants=False)


def union_of(ids: Tensor, world: int, group: Any) -> Tensor:
    """Ascending rows that are in `ids` of any process."""
    counts = torch.empty(world, dtype=torch.int64, device=ids.device)
    dist.all_gather(list(counts.unbind()), torch.tensor(len(ids), device=ids.device), group=group)
    most = int(counts.max())
    mine = torch.nn.functional.pad(ids, (0, most - len(ids)), value=-1)
    found = torch.empty(world, most, dtype=torch.int64, device=ids.device)
    dist.all_gather(list(found.unbind()), mine, group=group)
    union: Tensor = torch.unique(found)
    return union[union >= 0]


def leave_to_rows(model: torch.nn.Module) -> None:
    """Make a DistributedDataParallel built around `model` afterwards leave alone tables with sparse gradients."""
    names = [
        f"{prefix}{'.' if prefix else ''}weight"
        for prefix, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and module.sparse
    ]
    known = getattr(model, "_ddp_params_and_buffers_to_ignore", [])
    model._ddp_params_and_buffers_to_ignore = [*known, *names]  # type: ignore[assignment]
