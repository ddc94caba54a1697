"""Many processes as one run: who is who, sums over all of them, and the model as each of them holds it."""

import os
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from fastft.embedding import SparseEmbedding
from fastft.optim import leave_to_rows, sum_row_gradients

T = TypeVar("T")


class World:
    """The processes of a run. Numbers of the host are added up by gloo, so that no GPU waits for them.

    rank, size:  this process's number, and how many there are; 0 and 1 for a run of one.
    """

    def __init__(self) -> None:
        self.started = dist.is_initialized()
        if not self.started and "TORCHELASTIC_RUN_ID" in os.environ:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=4))  # one may read data or write texts for long
            self.started = True
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if self.started else (0, 1)

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each; on the CPU."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor([float(flag)])).item() > 0)

    def share(self, value: T) -> T:
        """What the leading process has, for all."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held)
        return held[0]

    def wait(self) -> None:
        """For all processes to come here."""
        if self.size > 1:
            self.sum(torch.zeros(1))

    def close(self) -> None:
        if self.started:
            dist.destroy_process_group()
            self.started = False


def sum_of(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """DDP's hook for gradients whose denominator is that of all processes already."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])  # type: ignore[no-any-return]


def replicated(model: nn.Module, device: torch.device, *, unused: bool) -> nn.Module:
    """A replica whose gradients are summed while backward runs; rows of a `SparseEmbedding` are left to `sum_rows`.
    Where these alone learn the model is returned as it is.

    unused: some parameters may get no gradient in a step.
    """
    leave_to_rows(model)
    tables = {module.weight for module in model.modules() if isinstance(module, SparseEmbedding)}
    if not any(parameter.requires_grad for parameter in model.parameters() if parameter not in tables):
        return model
    ids = [device.index] if device.type == "cuda" else None
    replica = DistributedDataParallel(model, device_ids=ids, find_unused_parameters=unused)
    replica.register_comm_hook(None, sum_of)
    return replica


def shard(model: Any, device: torch.device, *, bf16: bool) -> None:
    """Spread parameters, gradients and optimizer state over all processes (FSDP2), block by block.

    Raises:
        ValueError: the model does not say what its blocks are.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise ValueError(f"distributed is fsdp, but {type(model).__name__} does not name its blocks: use ddp")
    everywhere = _uses(model)  # what is tied to something outside, as the embeddings of a BERT, is left to the whole
    alone = [block for block in blocks if all(everywhere[p] == times for p, times in _uses(block).items())]
    for module in (*alone, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor


def _uses(model: nn.Module) -> Counter[nn.Parameter]:
    """How many modules hold each parameter."""
    return Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))


def reshard(model: nn.Module) -> None:
    """Free what FSDP keeps gathered: while it is there, freezing and thawing has no effect on it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def sum_rows(model: nn.Module) -> None:
    """Row gradients of every `SparseEmbedding`, summed over all processes."""
    tables = [m.weight for m in model.modules() if isinstance(m, SparseEmbedding)]
    sum_row_gradients([table for table in tables if table.requires_grad])


def quiet(model: Any, last: bool) -> AbstractContextManager[Any]:
    """Around the forward and backward pass of a micro-batch: gradients are added up at home, until the last one."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return nullcontext()


def lost_the_others(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone, which is where the reason is to be found."""
    return isinstance(error, dist.DistError) or any(
        sign in str(error) for sign in ("Connection closed by peer", "gloo")
    )
