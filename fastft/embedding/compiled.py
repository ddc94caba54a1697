"""`SparseEmbedding`'s lookup as ops of a compiled graph, which has neither sparse gradients nor the optimizer's state.

The graph knows a table by a number. Its row gradient goes to `weight.grad` while backward runs; what the graph sees of
that is the gradient, 0, of `mark`, a number that each lookup takes: of no elements it would be optimised away.
"""

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from fastft.optim.clipping import PutOff, apply_factor
from fastft.optim.gradient import Groups, check_in_range, coalesced, grouped, row_gradient

LIVE: "weakref.WeakValueDictionary[int, nn.Embedding]" = weakref.WeakValueDictionary()
NUMBERS = itertools.count(1)


def enter(table: nn.Embedding) -> Tensor:
    """The number by which ops find `table` while it lives: a tensor, lest each table has a graph of its own."""
    number = next(NUMBERS)
    LIVE[number] = table
    return torch.tensor(number, device="cpu")


def read(weight: Tensor, ids: Tensor) -> tuple[Tensor, Groups | None]:
    """The rows `ids` (N,) as they are now, whether or not they have been written, (N, D); and the ids' groups, where
    these were needed. Raises as `check_in_range`.
    """
    optimizer = getattr(weight, "row_optimizer", None)
    if optimizer is None:
        check_in_range(ids, len(weight))
        return weight.detach()[ids], None
    groups = grouped(ids, len(weight))
    return optimizer.current_rows(weight, groups), groups


@torch.library.custom_op("fastft::lookup", mutates_args=())
def lookup(weight: Tensor, ids: Tensor, mark: Tensor | None, number: Tensor) -> Tensor:
    """weight (V, D) of the table `number`, ids (...) -> (..., D). Without a mark it has no gradient."""
    rows, _ = read(LIVE[int(number)].weight, ids.reshape(-1).long())
    return rows.view(*ids.shape, weight.shape[1])


@lookup.register_fake
def _(weight: Tensor, ids: Tensor, mark: Tensor | None, number: Tensor) -> Tensor:
    return weight.new_empty(*ids.shape, weight.shape[1])


@torch.library.custom_op("fastft::add_row_gradient", mutates_args=())
def add_row_gradient(grad: Tensor, ids: Tensor, number: Tensor, call: int) -> Tensor:
    """Add to the table's `weight.grad` the gradient (..., D) of what was read at ids (...); returns that of the mark.

    `call` tells calls apart, lest a compiler takes two for one.
    """
    table = LIVE[int(number)]
    weight = table.weight
    apply_factor(weight.grad)
    hooks = [*(weight._backward_hooks or {}).values(), *(weight._post_accumulate_grad_hooks or {}).values()]
    if any(hook is not sum_rows and not isinstance(hook, PutOff) for hook in hooks):
        raise RuntimeError(
            "the weight of a compiled SparseEmbedding has hooks, which would not see its gradient: remove them, or run "
            "the model without torch.compile"
        )
    groups = grouped(ids.reshape(-1).long(), len(weight)).without(table.padding_idx)
    new = row_gradient(groups, grad.reshape(ids.numel(), weight.shape[1]), weight.shape, weight.dtype)
    if weight.grad is None:
        weight.grad = new
    elif weight.grad.is_sparse:
        weight.grad = coalesced(weight.grad + new)
    else:
        weight.grad += new
    return torch.zeros(())


@add_row_gradient.register_fake
def _(grad: Tensor, ids: Tensor, number: Tensor, call: int) -> Tensor:
    return torch.zeros(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ids, _, number = inputs
    ctx.call = next(NUMBERS)
    ctx.save_for_backward(ids, number)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if not ctx.needs_input_grad[2]:
        return None, None, None, None
    return None, None, add_row_gradient(grad, *ctx.saved_tensors, ctx.call), None


lookup.register_autograd(_backward, setup_context=_save)


def sum_rows(weight: Tensor) -> None:
    """After each backward: what several left of a row becomes one."""
    summed: int | None = weight.__dict__.pop("summed", None)
    if weight.grad is not None and weight.grad.is_sparse:  # as many rows as one lookup left are those rows
        weight.grad = coalesced(weight.grad, known=weight.grad._nnz() == summed)
