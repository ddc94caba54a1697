"""Rows of cross-entropy in plain torch, any device and floating dtype; formulas: csrc/math/row.h."""

import torch
from torch import Tensor


def why_not(logits: Tensor) -> str | None:
    return None


def cross_entropy(
    logits: Tensor, target: Tensor, coefficients: Tensor, q: Tensor | None, scale: float, softcap: float,
    grad: Tensor | None,
) -> Tensor:  # fmt: skip
    """Statistics (5, M): nll, lse, q.z, entropy, correct; `grad` (M, V) is written, may be `logits`.

    `target` (M,): negative for a row to skip, V for one out of range (its nll is NaN).
    """
    vocab, keep = logits.shape[1], target >= 0
    x = torch.where(keep[:, None], logits, 0).to(torch.promote_types(logits.dtype, torch.float32))
    t = torch.tanh(scale * x / softcap) if softcap else None
    z = scale * x if t is None else softcap * t
    index = target.clamp(0, vocab - 1)[:, None]
    logp, p, lse = z.log_softmax(-1), z.softmax(-1), z.logsumexp(-1)
    nll = torch.where(target < vocab, -logp.gather(1, index)[:, 0], torch.nan)
    q = torch.full_like(z[:1], 1 / vocab) if q is None else q.to(z.dtype)[None]
    entropy, correct = torch.special.entr(p).sum(-1), (z.argmax(-1) == target).to(z.dtype)
    if grad is not None:
        label, smooth, lse_square = coefficients.to(z.dtype).T[:, :, None]
        dz = (label + smooth + 2 * lse_square * lse[:, None]) * p - smooth * q
        dz = dz.scatter_add(1, index, -label) * scale
        dz = dz if t is None else torch.ops.aten.tanh_backward(dz, t)
        grad.copy_(torch.where(keep[:, None], dz, 0))
    return torch.where(keep, torch.stack([nll, lse, (q * z).sum(-1), entropy, correct]), 0)
