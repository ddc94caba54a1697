"""Chosen rows of a frozen head: they learn, at the cost of R columns and not of all V."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary


def head_rows(logits: Tensor, hidden: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    r"""`logits = hidden W^T + bias` of a frozen W, as a function of its rows `W[ids] = rows` too.

    The values are those of `logits`, in the same memory; in backward `d rows = d logits[..., ids]^T hidden`, and
    `logits` is given its gradient unchanged. Not twice differentiable (d hidden = d logits W does not know the rows);
    the fused loss is.

    Args:
        logits: `(..., V)`; lazy ones (`fastft.patch`) stay lazy and their loss fused.
        hidden: `(..., D)`, what the head was called with.
        rows: `(R, D)`, of any floating dtype; W holds these values already, rounded to its own.
        ids: `(R,)` int64.
    """
    if has_torch_function_unary(logits):
        lazy: Tensor = handle_torch_function(head_rows, (logits,), logits, hidden, rows, ids)
        return lazy
    result: Tensor = _HeadRows.apply(logits, hidden, rows, ids)  # type: ignore[no-untyped-call]
    return result


class _HeadRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, hidden: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, rows, ids)
        return logits.detach()  # not a view of it for autograd: what follows may write into it

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, rows, ids = ctx.saved_tensors
        columns = grad[..., ids].reshape(-1, len(ids))  # (N, R)
        found = columns.t() @ hidden.reshape(-1, hidden.shape[-1]).to(columns.dtype)
        return grad, None, found.to(rows.dtype), None
