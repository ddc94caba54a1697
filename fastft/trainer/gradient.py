"""The one normalisation: sum w nll / sum w over a whole accumulation window, however it is cut up."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fastft.data import Batch
from fastft.data.attention import forward
from fastft.losses import cross_entropy

Losses = dict[str, Tensor]  # by a model's output: a scalar, at least fp32


def totals(batches: Iterable[Batch]) -> dict[str, float]:
    """sum w of each output over some batches: the denominators of their means."""
    sums: dict[str, float] = {}
    for batch in batches:
        for target in batch.targets:
            sums[target.output] = sums.get(target.output, 0.0) + target.total
    return sums


def batch_losses(model: Any, batch: Batch, items: Mapping[str, float]) -> Losses:
    """sum w nll / items of each output over one batch, patched or not."""
    outputs = forward(model, batch)
    losses = {}
    for target in batch.targets:
        logits = getattr(outputs, target.output)
        losses[target.output] = cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            target.labels.reshape(-1),
            token_weight=target.weights.reshape(-1),
            num_items=items[target.output] or 1.0,
        )
    return losses


def window_gradient(
    model: Any,
    batches: Sequence[Batch],
    device: torch.device,
    autocast: AbstractContextManager[Any],
    scale: float = 1.0,
) -> tuple[Tensor, Losses]:
    """Add the gradient of a window's loss, times `scale`, to every parameter's `.grad`.

    The loss is the sum over outputs of sum w nll / sum w, each over the whole window and times its target's scale.

    Args:
        batches: micro-batches, on the CPU. Any cut of the same samples gives the same gradient, to rounding.
        autocast: entered around each forward pass; must be reusable, as `torch.autocast` is.

    Returns:
        Each micro-batch's share of the loss, (micro-batches,), whose sum is the window's loss; and that loss by output.
        Detached; without `scale`, and by output without the target's.
    """
    items = totals(batches)
    shares, parts = [], dict[str, Tensor]()
    for batch in batches:
        with autocast:
            losses = batch_losses(model, batch.to(device), items)
        scales = {target.output: target.scale for target in batch.targets}
        share = torch.stack([loss * scales[output] for output, loss in losses.items()]).sum()
        (share * scale if scale != 1.0 else share).backward()  # type: ignore[no-untyped-call]
        shares.append(share.detach())
        for output, loss in losses.items():
            parts[output] = parts.get(output, 0.0) + loss.detach()
    return torch.stack(shares), parts
