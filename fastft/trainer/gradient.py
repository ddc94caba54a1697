"""The one normalisation: sum w nll / sum w over a whole accumulation window, however it is cut up."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fastft.data import Batch
from fastft.data.attention import forward
from fastft.losses import cross_entropy
from fastft.trainer.distributed import quiet

Losses = dict[str, Tensor]  # by a model's output: a scalar, at least fp32


def totals(batches: Iterable[Batch]) -> dict[str, float]:
    """sum w of each output over some batches: the denominators of their means."""
    sums: dict[str, float] = {}
    for batch in batches:
        for target in batch.targets:
            sums[target.output] = sums.get(target.output, 0.0) + target.total
    return sums


def losses_of(outputs: Any, batch: Batch, items: Mapping[str, float], label_smoothing: float = 0.0) -> Losses:
    """sum w nll / items of each output of a model, patched or not, over one batch. Labels of the first output, tokens,
    are smoothed."""
    losses = {}
    for number, target in enumerate(batch.targets):
        logits = getattr(outputs, target.output)
        losses[target.output] = cross_entropy(
            logits.reshape(-1, logits.shape[-1]),
            target.labels.reshape(-1),
            token_weight=target.weights.reshape(-1),
            num_items=items[target.output] or 1.0,
            label_smoothing=0.0 if number else label_smoothing,
        )
    return losses


def window_gradient(
    model: Any,
    batches: Sequence[Batch],
    device: torch.device,
    autocast: AbstractContextManager[Any],
    scale: float = 1.0,
    *,
    items: Mapping[str, float] | None = None,
    seeds: Sequence[int] = (),
    label_smoothing: float = 0.0,
    last: bool = True,
) -> tuple[Tensor, Losses]:
    """Add the gradient of a window's loss, times `scale`, to every parameter's `.grad`.

    The loss is the sum over outputs of sum w nll / sum w, each over the whole window and times its target's scale.

    Args:
        model: bare, or as several processes hold it; their gradients are summed at the last batch.
        batches: micro-batches, on the CPU. Any cut of the same samples gives the same gradient, to rounding.
        autocast: entered around each forward pass; must be reusable, as `torch.autocast` is.
        items: sum w of each output where the window has more batches than these: those of other processes.
        seeds: of torch's generators, for each batch; without them generators go on as they are.
        last: another window adds to the same gradient after this one, if not.

    Returns:
        Each micro-batch's share of the loss, (micro-batches,), whose sum is the window's loss; and that loss by output.
        Detached; without `scale`, and by output without the target's.
    """
    items = totals(batches) if items is None else items
    shares, parts = [], dict[str, Tensor]()
    for number, batch in enumerate(batches):
        if seeds:
            torch.manual_seed(seeds[number])
        with quiet(model, last and number == len(batches) - 1):
            with autocast:
                batch = batch.to(device)
                losses = losses_of(forward(model, batch), batch, items, label_smoothing)
            scales = {target.output: target.scale for target in batch.targets}
            share = torch.stack([loss * scales[output] for output, loss in losses.items()]).sum()
            (share * scale if scale != 1.0 else share).backward()  # type: ignore[no-untyped-call]
        shares.append(share.detach())
        for output, loss in losses.items():
            parts[output] = parts.get(output, 0.0) + loss.detach()
    return torch.stack(shares), parts
