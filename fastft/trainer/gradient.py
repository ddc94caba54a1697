"""The one normalisation: sum w nll / sum w over a whole accumulation window, however it is cut up."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastft.data import Sample, collate
from fastft.data.collate import IGNORE_INDEX
from fastft.losses import cross_entropy

Batch = dict[str, Tensor]


def to_batch(samples: Sequence[Sample], pad_token_id: int, device: torch.device) -> Batch:
    """Tensors (B, T) of some samples, with `labels` and `token_weight` moved so that position t predicts token t + 1.

    The last position predicts nothing. On a GPU T is a multiple of 8, as its matrix units like.
    """
    batch = collate(samples, pad_token_id, pad_to_multiple_of=8 if device.type == "cuda" else 1)
    for name, nothing in (("labels", IGNORE_INDEX), ("token_weight", 0.0)):
        if name in batch:
            batch[name] = F.pad(batch[name][:, 1:], (0, 1), value=nothing)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def supervision(samples: Iterable[Sample]) -> float:
    """sum w over the tokens that are predicted, which are all but each sample's first."""
    return sum(sum(sample.weights[1:]) for sample in samples)


def batch_loss(model: Any, batch: Batch, num_items: float) -> Tensor:
    """sum w nll / num_items over one batch of a causal language model, patched or not: a scalar, at least fp32."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    weight = batch.get("token_weight")
    return cross_entropy(  # type: ignore[no-any-return]
        logits.reshape(-1, logits.shape[-1]),
        batch["labels"].reshape(-1),
        token_weight=None if weight is None else weight.reshape(-1),
        num_items=num_items,
    )


def window_gradient(
    model: Any,
    window: Sequence[Sequence[Sample]],
    pad_token_id: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> Tensor:
    """Add the gradient of the window's loss to every parameter's `.grad`.

    Args:
        window: micro-batches of samples. Any cut of the same samples gives the same gradient, to rounding.
        autocast: entered around each forward pass; must be reusable, as `torch.autocast` is.

    Returns:
        Each micro-batch's share of the loss, (micro-batches,), detached; their sum is the window's loss.
    """
    num_items = supervision(sample for samples in window for sample in samples)
    shares = []
    for samples in window:
        with autocast:
            loss = batch_loss(model, to_batch(samples, pad_token_id, device), num_items)
        loss.backward()  # type: ignore[no-untyped-call]
        shares.append(loss.detach())
    return torch.stack(shares)
