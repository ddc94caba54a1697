"""Norms and clipping over dense gradients and row gradients together."""

import math
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastft.optim.gradient import coalesced


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
    *, defer: bool = False,
) -> Tensor:  # fmt: skip
    r"""`torch.nn.utils.clip_grad_norm_` for gradients of which some are sparse by rows; torch's own refuses those.

        total = (sum_i |g_i|^norm_type)^(1 / norm_type)
        g <- g min(1, max_norm / (total + 1e-6))

    Args:
        parameters: a tensor or tensors with `.grad`, dense or sparse; those without one are left out.
        max_norm: the largest norm to leave as it is.
        norm_type: p of the norm; inf too.
        error_if_nonfinite: raise RuntimeError where the total norm is not finite, before anything is scaled.
        defer: leave row gradients as they are and have steps multiply them, a pass less and a rounding less. Only for
            tables that `SparseAdamW` and its kin step: other optimizers do not know of it.

            `p.grad` then holds the values before clipping, and in its attribute `factor` what they are still to be
            multiplied by, a scalar of at least fp32. The factor is that gradient's own: the next one has none. Before
            another backward adds to the gradient, or it is clipped again, or summed over processes, its values are
            multiplied and the factor goes. What other code computes from the values is not clipped.

    Returns:
        The total norm before clipping, a scalar.
    """
    dense, rows = list[Tensor](), list[Tensor]()
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if p.grad is not None and p.grad.is_sparse:
            apply_factor(p.grad)
            p.grad = coalesced(p.grad)
            rows.append(p)
        elif p.grad is not None:
            dense.append(p)
    grads: list[Any] = [p.grad for p in dense + rows]
    total = torch.nn.utils.get_total_norm([g._values() if g.is_sparse else g for g in grads], norm_type)
    if error_if_nonfinite and not bool(total.isfinite()):
        raise RuntimeError(f"the norm of the gradients is {float(total)}: they were not clipped")
    if max_norm < math.inf:
        torch.nn.utils.clip_grads_with_norm_(dense, max_norm, total)
        factor = (max_norm / (total.to(at_least_fp32(total)) + 1e-6)).clamp(max=1.0)
        for p, grad in zip(rows, grads[len(dense) :], strict=True):
            if defer and p.requires_grad:
                put_off(p, factor)
            else:
                grad._values().mul_(factor.to(grad.device, grad.dtype))
    return total


def put_off(p: Tensor, factor: Tensor) -> None:
    """Leave it to what takes `p.grad` next, a step or a backward that adds to it, to multiply it by `factor`."""
    grad: Any = p.grad
    grad.factor = factor.to(grad.device, at_least_fp32(grad))
    hook = p.register_hook(PutOff(grad))  # type: ignore[no-untyped-call]
    grad.release = weakref.finalize(grad, hook.remove)


class PutOff:
    """A hook that multiplies a gradient by its factor before a backward adds to it, and does not keep it alive."""

    def __init__(self, grad: Tensor) -> None:
        self.grad = weakref.ref(grad)

    def __call__(self, _: Tensor) -> None:
        apply_factor(self.grad())


def factor_of(grad: Tensor | None) -> Tensor | None:
    """What the values of a row gradient are still to be multiplied by, a scalar."""
    return getattr(grad, "factor", None)


@torch.no_grad()
def apply_factor(grad: Any) -> None:
    """Multiply the values of a row gradient by its factor, if it has one."""
    factor = factor_of(grad)
    if factor is not None:
        grad._values().mul_(factor.to(grad.dtype))
        grad.release()
        del grad.factor, grad.release


def at_least_fp32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
