"""Checks of what users pass: each message names the argument, what was got and what is wanted."""

import math
import os
from typing import Any, TypedDict

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TINY = math.ulp(0.0)  # the least number above 0


class Options(TypedDict, total=False):
    """Types of the keywords that `cross_entropy` and `linear_cross_entropy` share, for their overloads."""

    reduction: str
    label_smoothing: float
    token_weight: Tensor | None
    softcap: float | None
    logit_scale: float
    z_loss: float
    num_items: float | Tensor | None
    backend: str


class HeadOptions(Options, total=False):
    """Those of `linear_cross_entropy`."""

    linear_bias: Tensor | None
    linear_rows: tuple[Tensor, Tensor] | None
    weight: Tensor | None
    ignore_index: int | None
    valid: Tensor | None
    memory_budget: int | None
    tp_group: Any


def floating(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a Tensor")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {value.dtype}; expected float16, bfloat16, float32 or float64")


def same_device(name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}, input is on {like.device}: move one of them")


def same_dtype(name: str, value: Tensor | None, like: Tensor) -> None:
    if value is not None and value.dtype != like.dtype:
        raise TypeError(f"{name} has dtype {value.dtype}, input has {like.dtype}: cast one, or use torch.autocast")


def shape(name: str, value: Tensor, wanted: tuple[int, ...], why: str) -> None:
    if value.shape != wanted:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {tuple(wanted)}, {why}")


def head(input: Any, linear_weight: Any, linear_bias: Any) -> None:
    """All but that dtypes agree, which autocast may still bring about."""
    floating("input", input)
    floating("linear_weight", linear_weight)
    same_device("linear_weight", linear_weight, input)
    if linear_weight.dim() != 2:
        raise ValueError(
            f"linear_weight has shape {tuple(linear_weight.shape)}; expected (V, D). "
            "For K-dimensional heads use torch.nn.functional.linear_cross_entropy"
        )
    if input.dim() == 0 or input.shape[-1] != linear_weight.shape[1]:
        wanted = f"(..., {linear_weight.shape[1]}), linear_weight being {tuple(linear_weight.shape)}"
        raise ValueError(f"input has shape {tuple(input.shape)}; expected {wanted}")
    if linear_bias is not None:
        floating("linear_bias", linear_bias)
        same_device("linear_bias", linear_bias, input)
        shape("linear_bias", linear_bias, (linear_weight.shape[0],), "one value per class")


def head_rows(linear_rows: Any, linear_weight: Tensor, group: str) -> tuple[Tensor | None, Tensor | None]:
    """Ids (R,) and rows (R, D) of `linear_rows`, or a pair of None."""
    if linear_rows is None:
        return None, None
    ids, rows = linear_rows
    not_parallel(group, "linear_rows")
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"linear_rows[0] is {got}; expected the rows' ids, a 1-d int64 Tensor")
    floating("linear_rows[1]", rows)
    for name, value in (("linear_rows[0]", ids), ("linear_rows[1]", rows)):
        same_device(name, value, linear_weight)
    shape("linear_rows[1]", rows, (len(ids), linear_weight.shape[1]), "one row of linear_weight per id")
    if linear_weight.requires_grad:
        raise ValueError("linear_weight requires grad, and so would its linear_rows twice: freeze linear_weight")
    return ids, rows


def positions(valid: Any, target: Tensor) -> None:
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.int64 or valid.dim() != 1:
        got = f"{valid.dtype} {tuple(valid.shape)}" if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"valid is {got}; expected a 1-d int64 Tensor of positions in the flattened target")
    same_device("valid", valid, target)
    if valid.device.type != "cpu" or torch.compiler.is_compiling() or not len(valid):
        return
    there = valid[: int((valid >= 0).sum())]
    if bool((there < 0).any()) or bool((there.diff() <= 0).any()) or (len(there) and there[-1] >= target.numel()):
        raise ValueError(
            f"valid must ascend, each position once, within the {target.numel()} positions of target, with -1 "
            "nowhere but at its end"
        )


def class_indices(target: Any, like: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target is a {type(target).__name__}; expected a Tensor of class indices (int64)")
    if target.dtype != torch.int64:
        raise TypeError(f"target has dtype {target.dtype}; expected int64 class indices: use target.long()")
    same_device("target", target, like)


def per_class(name: str, value: Tensor | None, vocab: int, like: Tensor) -> None:
    if value is not None:
        floating(name, value)
        same_device(name, value, like)
        shape(name, value, (vocab,), "one value per class")


def per_token(name: str, value: Tensor | None, target: Tensor) -> None:
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a float Tensor shaped like target")
    if value.is_complex():
        raise TypeError(f"{name} has dtype {value.dtype}; expected a float Tensor shaped like target")
    same_device(name, value, target)
    shape(name, value, tuple(target.shape), "that of target")
    if value.requires_grad:
        raise ValueError(
            f"{name} requires grad; it is a constant here: detach it, or use reduction='none' and weight the loss"
        )


def number(name: str, value: Any, wanted: str, lowest: float, highest: float = math.inf) -> None:
    if not isinstance(value, (int, float)) or not lowest <= value <= highest or not -math.inf < value < math.inf:
        raise ValueError(f"{name} is {value!r}; expected {wanted}")


def options(
    reduction: str, ignore_index: Any, label_smoothing: Any, softcap: Any, logit_scale: Any, z_loss: Any, num_items: Any
) -> None:
    """The scalar options that both losses share."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index is {ignore_index!r}; expected an int")
    number("label_smoothing", label_smoothing, "a number in [0, 1]", 0.0, 1.0)
    number("logit_scale", logit_scale, "a finite Python number", -math.inf)
    number("z_loss", z_loss, "a finite Python number", -math.inf)
    if softcap is not None:
        number("softcap", softcap, "a positive number, or None for no cap", TINY)
    if num_items is None:
        return
    if reduction != "mean":
        raise ValueError(f"num_items replaces the mean's denominator, but reduction is {reduction!r}; use 'mean'")
    if not isinstance(num_items, Tensor):
        number("num_items", num_items, "a positive number of items", TINY)
    elif num_items.numel() != 1:
        raise ValueError(f"num_items has shape {tuple(num_items.shape)}; expected a number or one-element Tensor")


def memory_budget(value: Any) -> None:
    if value is not None and (not isinstance(value, int) or value < 0):
        raise ValueError(f"memory_budget is {value!r}; expected a number of bytes, or None for the default")


def only_for_class_indices(token_weight: Any, z_loss: float, num_items: Any, return_stats: bool) -> None:
    given = {"token_weight": token_weight is not None, "z_loss": z_loss != 0, "num_items": num_items is not None}
    for name, is_given in {**given, "return_stats": return_stats}.items():
        if is_given:
            raise ValueError(f"{name} goes with class indices, but target holds class probabilities (it is floating)")


def not_parallel(group: str, what: str) -> None:
    if group:
        raise NotImplementedError(f"{what}: not with a head that is spread over processes (tp_group); gather it first")


def targets_in_range(target: Tensor, vocab: int, ignore_index: int, positions: Tensor | None) -> None:
    """Raise `IndexError` for a target outside [0, vocab) that is not `ignore_index`.

    `positions` maps entries to positions of the flattened target. Checked on the CPU; elsewhere, where it
    costs a synchronisation, only with FASTFT_CHECK=1.
    """
    if target.device.type != "cpu" and os.environ.get("FASTFT_CHECK") != "1":
        return
    bad = ((target < 0) | (target >= vocab)) & (target != ignore_index)
    if bad.any():
        entry = int(bad.nonzero()[0, 0])
        position = entry if positions is None else int(positions[entry])
        raise IndexError(
            f"target[{position}] (flattened) is {int(target[entry])}; "
            f"expected a class in 0..{vocab - 1} or ignore_index={ignore_index}"
        )
