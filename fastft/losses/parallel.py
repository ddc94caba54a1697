"""A head whose classes are spread over processes: rank r of a group holds V_r consecutive rows of W.

Every rank projects the same tokens on its own classes. One collective per chunk of rows then joins what each
softmax needs of the others; the gradient needs no other, but for dx, whose parts are summed over the ranks. The
scheme is Megatron-LM's (arXiv:1909.08053, 3), with its three collectives packed into one.
"""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastft.losses.cross_entropy import accumulation_dtype, transformed

SURE = 1e30  # odds beyond which log1p(odds) is a difference of logarithms


class Shard(NamedTuple):
    """This process's classes [first, first + V_r) of `vocab`; plain values, for a compiled graph."""

    group: str  # its name; "" where W is whole
    first: int
    vocab: int

    @property
    def most(self) -> int:
        """Classes of the rank that has most: what every rank must agree on follows from it."""
        return -(-self.vocab // dist.get_world_size(group_of(self.group))) if self.group else self.vocab


def group_of(name: str) -> Any:
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]


def is_dtensor(x: Any) -> bool:
    """Without importing DTensor, which takes a while and which whoever has one has done."""
    return isinstance(x, Tensor) and hasattr(x, "device_mesh") and hasattr(x, "placements")


def local(x: Any) -> Any:
    return x.to_local() if is_dtensor(x) else x


def shard_of(input: Any, linear_weight: Any, linear_bias: Any, tp_group: Any) -> Shard:
    """Which classes this process holds.

    Raises `ValueError` for a placement other than rows of W over one group and all tokens on every rank.
    """
    vocab, group = linear_weight.shape[0], tp_group
    if is_dtensor(linear_weight):
        group = group_of_rows(linear_weight)
        if group is not None and tp_group is None and not is_dtensor(input):
            raise ValueError(
                "linear_weight is a DTensor sharded on dim 0, input a plain Tensor: pass tp_group="
                "linear_weight.device_mesh.get_group() if every rank has the same input (tensor parallel), "
                "linear_weight.full_tensor() if each has its own (FSDP)"
            )
        if tp_group is not None and (group is None or group.group_name != tp_group.group_name):
            raise ValueError(f"linear_weight is a DTensor placed {linear_weight.placements}, but not over tp_group")
        if (
            group is not None
            and linear_bias is not None
            and getattr(linear_bias, "placements", None) != linear_weight.placements
        ):
            raise ValueError(f"linear_bias must be a DTensor placed {linear_weight.placements}, as linear_weight is")
    if is_dtensor(input) and not all(placement.is_replicate() for placement in input.placements):
        raise ValueError(f"input is a DTensor placed {input.placements}; expected Replicate() on every mesh dimension")
    if group is None:
        return Shard("", 0, vocab)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("this process is not in tp_group")
    if is_dtensor(linear_weight):
        most = -(-vocab // ranks)
        if most * (ranks - 1) >= vocab:
            raise ValueError(f"linear_weight has {vocab} rows: none for the last of {ranks} ranks")
        return Shard(group.group_name, rank * most, vocab)
    if not torch.compiler.is_compiling():
        check_equal(group, vocab, linear_weight.device)
    return Shard(group.group_name, rank * vocab, ranks * vocab)


def group_of_rows(weight: Any) -> Any:
    """The group over which a DTensor's rows are spread, None if every rank has all."""
    sharded = [i for i, placement in enumerate(weight.placements) if not placement.is_replicate()]
    if len(sharded) > 1 or any(not weight.placements[i].is_shard(0) for i in sharded):
        raise ValueError(
            f"linear_weight is a DTensor placed {weight.placements}; expected Shard(0) on one mesh dimension"
        )
    return weight.device_mesh.get_group(sharded[0]) if sharded else None


@functools.cache
def check_equal(group: Any, rows: int, device: torch.device) -> None:
    """Collective, once per size."""
    found = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    dist.all_gather(list(found.unbind()), torch.tensor(rows, device=device), group=group)
    if len(set(found.tolist())) > 1:
        raise ValueError(
            f"linear_weight has {found.tolist()} rows on the ranks of tp_group; expected as many on each "
            "(pad the vocabulary), or a DTensor, which may be uneven"
        )


class Kernel(NamedTuple):
    """`cross_entropy` of rows whose classes are spread, by a backend's kernel on those that are here."""

    local: ModuleType
    shard: Shard

    def cross_entropy(
        self, logits: Tensor, target: Tensor, coefficients: Tensor, q: Tensor | None, scale: float, softcap: float,
        grad: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The contract of kernels/reference/cross_entropy.py over all `vocab` classes; `logits` are of those here.

        With s = exp(lse_here - lse), the softmax of a class here is s times that among the classes here. So the
        kernel's own gradient, its label weight made `a s - smooth`, is right but for the class it takes for the
        target, whose element is written afterwards.
        """
        vocab, classes = self.shard.vocab, logits.shape[1]
        keep = target >= 0
        here = (target >= self.shard.first) & (target < self.shard.first + classes)
        at = (target - self.shard.first).clamp(0, classes - 1)
        marked = torch.where(keep, at, -1)
        dtype = accumulation_dtype(logits)
        q_here = None if q is None else q[self.shard.first : self.shard.first + classes]
        share = 1.0 if q is not None else classes / vocab
        z_y = transformed(logits.gather(1, at[:, None])[:, 0].to(dtype), softcap or None, scale)
        top = transformed((logits.amax(1) if scale >= 0 else logits.amin(1)).to(dtype), softcap or None, scale)
        nll, lse_here, q_dot_z, entropy, correct = self.local.cross_entropy(
            logits, marked, coefficients, q_here, scale, softcap, None
        )
        mine = torch.stack([lse_here, nll, q_dot_z * share, entropy, correct, z_y, top, here.to(dtype)])
        stats = joined(self._gathered(mine), keep, (target >= vocab) & keep)
        if grad is not None:
            label, smooth, lse_square = coefficients.to(dtype).unbind(1)
            lse = stats[1]
            weight = smooth + 2 * lse_square * lse
            rows = torch.stack([(label + weight) * torch.exp(lse_here - lse) - smooth * share, smooth * share], 1)
            rows = torch.nn.functional.pad(rows, (0, 1))
            dz = torch.where(here, weight, label + weight) * torch.exp(z_y - lse)
            dz = dz + torch.where(here, label * torch.expm1(-stats[0]), 0)
            dz = dz - smooth * (1 / vocab if q_here is None else q_here[at])
            self.local.cross_entropy(logits, marked, rows, q_here, scale, softcap, grad)
            slope = torch.ops.aten.tanh_backward(dz, z_y / softcap) if softcap else dz
            grad.scatter_(1, at[:, None], torch.where(keep, slope * scale, 0).to(grad.dtype)[:, None])
        return stats

    def _gathered(self, mine: Tensor) -> Tensor:
        """(F, M) of each rank as (R, F, M)."""
        group = group_of(self.shard.group)
        parts = mine.new_empty(dist.get_world_size(group), *mine.shape)
        dist.all_gather(list(parts), mine, group=group)
        return parts


def joined(parts: Tensor, keep: Tensor, out_of_range: Tensor) -> Tensor:
    """Statistics (5, M) of whole rows from those (R, 8, M) of the ranks' classes."""
    lse_here, nll, q_dot_z, entropy, correct, z_y, top, here = parts.unbind(1)
    here = here.bool()
    lse = lse_here.logsumexp(0)
    owner = here.long().argmax(0, keepdim=True)

    def of_owner(x: Tensor) -> Tensor:
        return x.gather(0, owner)[0]

    own_lse = of_owner(lse_here)
    odds = torch.where(here, 0, torch.exp(lse_here - own_lse)).sum(0)  # against the owner's classes
    nll = of_owner(nll) + torch.where(odds < SURE, torch.log1p(odds), lse - own_lse)
    rank = torch.arange(len(parts), device=parts.device)[:, None]
    beaten = torch.where(rank < owner, top < of_owner(z_y), (top <= of_owner(z_y)) | (rank == owner))
    correct = of_owner(correct) * beaten.all(0) * ~out_of_range
    nll = torch.where(out_of_range, torch.nan, nll)
    entropy = (torch.exp(lse_here - lse) * (entropy + (lse - lse_here))).sum(0)
    return torch.where(keep, torch.stack([nll, lse, q_dot_z.sum(0), entropy, correct]), 0)
