"""Norms and clipping over dense gradients and row gradients together."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fastft.optim.gradient import coalesced


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    r"""`torch.nn.utils.clip_grad_norm_` for gradients of which some are sparse by rows; torch's own refuses those.

        total = (sum_i |g_i|^norm_type)^(1 / norm_type)
        g <- g min(1, max_norm / (total + 1e-6))

    Args:
        parameters: a tensor or tensors with `.grad`, dense or sparse; those without one are left out.
        max_norm: the largest norm to leave as it is.
        norm_type: p of the norm; inf too.
        error_if_nonfinite: raise RuntimeError where the total norm is not finite, before anything is scaled.

    Returns:
        The total norm before clipping, a scalar.
    """
    dense, values, rows = list[Tensor](), list[Tensor](), list[Tensor]()
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = coalesced(p.grad)
            rows.append(p.grad._values())
        elif p.grad is not None:
            dense.append(p)
            values.append(p.grad)
    total = torch.nn.utils.get_total_norm([*values, *rows], norm_type)
    if error_if_nonfinite and not bool(total.isfinite()):
        raise RuntimeError(f"the norm of the gradients is {float(total)}: they were not clipped")
    if max_norm < math.inf:
        torch.nn.utils.clip_grads_with_norm_(dense, max_norm, total)
        for grad in rows:
            grad.mul_((max_norm / (total + 1e-6)).clamp(max=1.0).to(grad.device, grad.dtype))
    return total
