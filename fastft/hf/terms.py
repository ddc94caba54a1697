"""Which logits the fused loss can express, and what a torch call makes of them.

Shapes: hidden (..., D), weight (V, D), bias (V,), logits (..., V). In a rule, `like` is a meta tensor with the
logits' shape, strides and dtype: what torch does to it says what the result looks like, and refuses a wrong view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from fastft.losses.head_rows import head_rows
from fastft.losses.linear_cross_entropy import linear_cross_entropy


@dataclass(frozen=True)
class Terms:
    """logits = amplitude * tanh(scale * (hidden weight^T + bias)), or without the tanh where `amplitude` is None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    autocast: torch.dtype | None  # the dtype in which autocast ran the head
    scale: float = 1.0
    amplitude: float | None = None
    rows: tuple[Tensor, Tensor] | None = None  # ids and rows of a frozen weight to which its gradient goes

    def loss(self, target: Tensor, **options: Any) -> Any:
        """`linear_cross_entropy` of these logits, where a tanh(s u) is the cap c tanh(s c u / c), c = a."""
        dtype = self.autocast or self.hidden.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        scale = self.scale * (1.0 if self.amplitude is None else self.amplitude)
        with torch.autocast(self.hidden.device.type, enabled=False):
            return linear_cross_entropy(
                self.hidden.to(dtype), self.weight.to(dtype), target,
                linear_bias=bias, linear_rows=self.rows, softcap=self.amplitude, logit_scale=scale, **options,
            )  # fmt: skip


Derived = tuple[Terms, Tensor] | None  # None: only the real logits will do


def multiply(terms: Terms, like: Tensor, factor: Any) -> Derived:
    if not (isinstance(factor, (int, float)) and 0 < factor < inf):
        return None
    if terms.amplitude is None:
        return replace(terms, scale=terms.scale * factor), like * factor
    return replace(terms, amplitude=terms.amplitude * factor), like * factor


def divide(terms: Terms, like: Tensor, divisor: Any) -> Derived:
    return multiply(terms, like, 1.0 / divisor) if isinstance(divisor, (int, float)) and divisor else None


def tanh(terms: Terms, like: Tensor) -> Derived:
    return (replace(terms, amplitude=1.0), like.tanh()) if terms.amplitude is None else None


def add(terms: Terms, like: Tensor, other: Any) -> Derived:
    """A bias (V,) or (1, ..., 1, V); after a scale or tanh it is no bias of the head any more."""
    plain = terms.scale == 1.0 and terms.amplitude is None and type(other) in (Tensor, torch.nn.Parameter)
    if not plain or other.device != terms.hidden.device or not other.is_floating_point() or other.dim() > like.dim():
        return None
    if other.shape[-1:] != like.shape[-1:] or other.numel() != like.shape[-1]:
        return None
    bias = other.reshape(-1) if terms.bias is None else terms.bias + other.reshape(-1)
    return replace(terms, bias=bias), like + torch.empty_like(other, device="meta")


def train_rows(terms: Terms, like: Tensor, hidden: Tensor, rows: Tensor, ids: Tensor) -> Derived:
    """`head_rows` of what the head itself gave."""
    untouched = terms.scale == 1.0 and terms.amplitude is None and terms.rows is None
    if not untouched or hidden is not terms.hidden or terms.weight.requires_grad:
        return None
    return replace(terms, rows=(ids, rows)), like.detach()


def cast(terms: Terms, like: Tensor, dtype: torch.dtype) -> Derived:
    """Changes the rounding of the logits, which the fused loss keeps in fp32 anyway."""
    return (terms, like.to(dtype)) if dtype.is_floating_point else None


def to(terms: Terms, like: Tensor, *args: Any, **kwargs: Any) -> Derived:
    try:
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    except (TypeError, RuntimeError):  # copy=True and other rarities
        return None
    if memory_format is not None or device not in (None, terms.hidden.device):
        return None
    return cast(terms, like, dtype or like.dtype)


def contiguous(terms: Terms, like: Tensor) -> Derived:
    return terms, like.contiguous()


def reshape(method: Callable[..., Tensor], terms: Terms, like: Tensor, *size: Any) -> Derived:
    """Any shape that leaves V last; the dimensions before it are those of hidden."""
    if not all(isinstance(n, (int, list, tuple)) for n in size):
        return None
    shaped = method(like, *size)
    if shaped.shape[-1:] != like.shape[-1:]:
        return None
    return replace(terms, hidden=terms.hidden.reshape(*shaped.shape[:-1], terms.hidden.shape[-1])), shaped


def getitem(terms: Terms, like: Tensor, index: Any) -> Derived:
    """Positions by slice, number or tensor, and a slice of the vocabulary."""
    index = index if isinstance(index, tuple) else (index,)
    if any(dimensions(i) is None for i in index):
        return None
    taken = sum(dimensions(i) or 0 for i in index)
    full = [slice(None)] * (like.dim() - taken)
    at = next((k for k, i in enumerate(index) if i is Ellipsis), None)
    index = (*index, *full) if at is None else (*index[:at], *full, *index[at + 1 :])
    *positions, columns = index
    if taken > like.dim() or not isinstance(columns, slice) or columns.step not in (None, 1):
        return None
    hidden = terms.hidden[tuple(positions)]
    weight, bias = terms.weight, terms.bias
    if columns != slice(None):
        if terms.rows is not None:
            return None
        weight, bias = weight[columns], None if bias is None else bias[columns]
    if any(isinstance(i, Tensor) for i in positions):
        like = torch.empty(*hidden.shape[:-1], len(weight), dtype=like.dtype, device="meta")
    else:
        like = like[index]
    return replace(terms, hidden=hidden, weight=weight, bias=bias), like


def dimensions(index: Any) -> int | None:
    """How many dimensions one entry of an index takes up; None for entries that have no rule."""
    if isinstance(index, Tensor):
        rank = index.dim() if index.dtype == torch.bool else 1
        return rank if rank and index.dtype in (torch.bool, torch.int32, torch.int64) else None
    if index is Ellipsis:
        return 0
    return 1 if isinstance(index, slice) or type(index) is int else None


RULES: dict[Callable[..., Any], Callable[..., Derived]] = {
    **dict.fromkeys((torch.mul, Tensor.mul, torch.multiply, Tensor.multiply), multiply),
    **dict.fromkeys((torch.div, Tensor.div, torch.true_divide, Tensor.true_divide), divide),
    **dict.fromkeys((torch.tanh, Tensor.tanh), tanh),
    **dict.fromkeys((torch.add, Tensor.add), add),
    head_rows: train_rows,
    Tensor.float: partial(cast, dtype=torch.float32),
    Tensor.double: partial(cast, dtype=torch.float64),
    Tensor.half: partial(cast, dtype=torch.float16),
    Tensor.bfloat16: partial(cast, dtype=torch.bfloat16),
    Tensor.to: to,
    Tensor.contiguous: contiguous,
    Tensor.view: partial(reshape, Tensor.view),
    **dict.fromkeys((torch.reshape, Tensor.reshape), partial(reshape, Tensor.reshape)),
    Tensor.__getitem__: getitem,
}
