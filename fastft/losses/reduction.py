"""Everything in a loss that is a vector over tokens: which count, how much, and what the mean divides by.

With z the logits, q a distribution over classes and (label, smooth, lse_square) one token's coefficients,

    loss_i = label_i nll_i + smooth_i (lse_i - q.z_i) + lse_square_i lse_i^2

is every option at once: weights, label smoothing, z-loss and the reduction only choose coefficients, so
they never reach a kernel (csrc/math/row.h has the gradient). Label smoothing follows torch's definition,
with class weights too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LossStats(NamedTuple):
    """Per-token statistics, each shaped like `target`, detached; 0 (False) where the token is ignored.

    Attributes:
        nll: -log p(target), nats, unweighted.
        lse: log sum exp of the transformed logits.
        correct: bool: the target has the largest logit (the first of equals).
        entropy: of softmax(logits), nats.
    """

    nll: Tensor
    lse: Tensor
    correct: Tensor
    entropy: Tensor


def ignore_weightless(target: Tensor, token_weight: Tensor | None, ignore_index: int) -> Tensor:
    """Target with `ignore_index` where the token's weight is 0: what does not learn is not computed."""
    return target if token_weight is None else torch.where(token_weight == 0, ignore_index, target)


def coefficients(
    target: Tensor,
    vocab: int,
    dtype: torch.dtype,
    *,
    weight: Tensor | None,
    token_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    num_items: float | Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Per-token (label, smooth, lse_square) as (K, 3), and q (V,) or None for 1/V, in `dtype`.

    `target` (K,) may hold `ignore_index`, whose coefficients are 0. For the mean they are divided by
    sum_i token_weight_i weight[target_i], or `num_items`; by nothing where that sum is 0.
    """
    keep = target != ignore_index
    w = keep.to(dtype)
    if token_weight is not None:
        w = torch.where(keep, token_weight.to(dtype), 0)
    q = None
    smooth = w * label_smoothing
    if weight is not None:
        total = weight.to(dtype).sum()
        if label_smoothing:
            q = torch.where(total != 0, weight.to(dtype) / total, 0)
            smooth = smooth * (total / vocab)
        w = w * weight.to(dtype)[target.clamp(0, vocab - 1)]
    rows = torch.stack([w * (1.0 - label_smoothing), smooth, w * z_loss], dim=1)
    if reduction == "mean" and not isinstance(num_items, (int, float)):
        count = w.sum() if num_items is None else num_items.to(w.device, dtype).reshape(())
        rows = rows / torch.where(count != 0, count, 1)
    elif reduction == "mean":
        rows = rows / (num_items or 1)  # not as a tensor: a copy to a GPU would wait, and has no place in a CUDA graph
    return rows, q


def combine(stats: Sequence[Tensor] | Tensor, rows: Tensor, reduced: bool) -> Tensor:
    """Loss (K,) from nll, lse and q.z, each (K,), and coefficients (K, 3), or its sum."""
    nll, lse, q_dot_z = stats[0], stats[1], stats[2]
    label, smooth, lse_square = rows.unbind(1)
    # A -inf logit makes q.z infinite: it counts only where there is smoothing.
    loss = label * nll + torch.where(smooth != 0, smooth * (lse - q_dot_z), 0) + lse_square * lse.square()
    return loss.sum() if reduced else loss


def loss_stats(stats: Tensor, shape: torch.Size) -> LossStats:
    nll, lse, _, entropy, correct = (row.reshape(shape) for row in stats.unbind(0))
    return LossStats(nll, lse, correct.bool(), entropy)
