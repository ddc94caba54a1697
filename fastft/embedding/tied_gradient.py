"""The gradient of a tied table's lookup: rows that are added into the head's gradient where autograd would add two."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from fastft.optim.gradient import grouped, row_sums

References = tuple[int, ...]
Head = Callable[[Tensor, Tensor, Tensor], Tensor]


class TiedLookup(torch.autograd.Function):
    """weight (V, D), ids (...) -> (..., D)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.size, ctx.dtype, ctx.padding_idx = weight.shape, weight.dtype, padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ids,), (rows, width) = ctx.saved_tensors, ctx.size
        if torch.is_grad_enabled():  # to be differentiated again
            none = -1 if ctx.padding_idx is None else ctx.padding_idx
            return torch.ops.aten.embedding_dense_backward(grad, ids, rows, none, False), None, None
        references_when_alone(grad.device)  # once; under __torch_dispatch__ there is no autograd to find them with
        groups = grouped(ids.reshape(-1).long(), rows).without(ctx.padding_idx)
        sums = row_sums(groups, grad.reshape(-1, width))
        return RowSums(ctx.size, ctx.dtype, [(groups.touched, sums)]), None, None


class RowSums(Tensor):
    """A gradient (V, D) of zeros but for some rows, on its way through autograd.

    `parts`: pairs of rows (U,), each once, and what is to be added to them, (U, D), in at least fp32.
    """

    parts: list[tuple[Tensor, Tensor]]

    @staticmethod
    def __new__(cls, size: torch.Size, dtype: torch.dtype, parts: list[tuple[Tensor, Tensor]]) -> "RowSums":
        device = parts[0][1].device
        made: RowSums = Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device)
        made.parts = parts
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.add.Tensor and not kwargs:
            grad, rows = args  # autograd's order: what there is, and what comes
            if type(grad) is Tensor and grad.layout is torch.strided and grad.dtype == rows.dtype:
                return rows.joined(grad, references(grad))
            if isinstance(grad, RowSums) and isinstance(rows, RowSums):
                return RowSums(rows.shape, rows.dtype, grad.parts + rows.parts)
        args, kwargs = tree_map_only(RowSums, RowSums.whole, (args, kwargs or {}))
        return func(*args, **kwargs)

    def joined(self, grad: Tensor, held: References) -> Tensor:
        """Added to the head's gradient (V, D), which is written to where nobody else has it."""
        alone = grad.is_contiguous() and held in references_when_alone(grad.device)
        return self.added_to(grad if alone else grad.clone(memory_format=torch.contiguous_format))

    def added_to(self, grad: Tensor) -> Tensor:
        for touched, sums in self.parts:
            grad.index_copy_(0, touched, (grad.index_select(0, touched) + sums).to(grad.dtype))
        return grad

    def whole(self) -> Tensor:
        return self.added_to(torch.zeros(self.shape, dtype=self.dtype, device=self.device))


def densified(grad: Tensor | None) -> Tensor | None:
    """The weight's hook: what no head's gradient took in."""
    return grad.whole() if isinstance(grad, RowSums) else None


# Whether a gradient is autograd's alone. Autograd writes to one that is, but to no other, and does not ask in Python;
# its references are compared with those of gradients of which it is known.


def references(grad: Tensor) -> References:
    """Counts of references to the tensor, in Python and C++, to its memory, and to the tensor that it is a view of."""
    base = grad._base
    memory = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
    counts = (sys.getrefcount(grad), grad._use_count(), memory)  # type: ignore[attr-defined]
    return counts if base is None else (*counts, sys.getrefcount(base), base._use_count())  # type: ignore[attr-defined]


@functools.cache
def references_when_alone(device: torch.device) -> frozenset[References]:
    """Those of gradients that nobody else has; none where they do not tell."""
    if not hasattr(Tensor, "_use_count") or not hasattr(torch._C, "_storage_Use_Count"):
        return frozenset()
    kept: list[Tensor] = []
    heads: list[Head] = [lambda h, w, _: h.sum() * w, lambda h, w, _: F.linear(h, w)]  # its own memory, and a view
    holders: list[Callable[[Tensor], Any]] = [lambda g: g, lambda g: g[0], lambda g: g if g._base is None else g._base]
    unwatched, in_fp32 = _disable_current_modes(), torch.autocast(device.type, enabled=False)
    with unwatched, in_fp32, torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
        alone = {seen_by(head, device) for head in heads}
        shared = {seen_by(held(head, part, kept), device) for head in heads for part in holders}
        shared.add(seen_by(lambda h, w, other: h.sum() * (w + other), device))
    return frozenset() if alone & shared else frozenset(alone)


def held(head: Head, part: Callable[[Tensor], Any], kept: list[Any]) -> Head:
    """`head` where `kept` has a part of the gradient too."""
    return lambda h, w, other: head(h, Keep.apply(w, kept, part), other)  # type: ignore[no-untyped-call]


def seen_by(head: Head, device: torch.device) -> References:
    """Of the gradient that `head` gives a weight, where a lookup's gradient meets it. What head does with its last
    argument is differentiated after that.
    """
    weight, seen = torch.ones(3, 2, device=device, requires_grad=True), list[References]()
    other = torch.ones(3, 2, device=device, requires_grad=True).exp()
    head(Probe.apply(weight, seen), weight, other).sum().backward()  # type: ignore[no-untyped-call]
    return seen[0] if seen else ()


class Seen(RowSums):
    seen: list[References]

    def joined(self, grad: Tensor, held: References) -> Tensor:
        self.seen.append(held)
        return grad.clone()


class Probe(torch.autograd.Function):
    """weight (V, D) -> its first row (1, D)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, seen: list[References]) -> Tensor:
        ctx.size, ctx.seen = weight.shape, seen
        return weight[:1].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        made = Seen(ctx.size, grad.dtype, [(torch.zeros(1, dtype=torch.int64, device=grad.device), grad)])
        made.seen = ctx.seen
        return made, None


class Keep(torch.autograd.Function):
    """The identity, with a hold on the gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kept: list[Any], part: Callable[[Tensor], Any]) -> Tensor:
        ctx.kept, ctx.part = kept, part
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.kept.append(ctx.part(grad))
        return grad, None, None
