"""Loss and perplexity on held-out samples."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from fastft.data import Sample
from fastft.trainer.gradient import batch_loss, supervision, to_batch


@dataclass(frozen=True)
class Evaluation:
    """eval_loss: sum w nll / sum w over all held-out tokens, nats. perplexity: its exponential."""

    eval_loss: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.eval_loss) if self.eval_loss < 700 else math.inf


@torch.no_grad()
def evaluate(
    model: Any,
    samples: Sequence[Sample],
    batch_size: int,
    pad_token_id: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """The token-weighted loss, the same for every batch size up to rounding.

    Samples go by length, the longest first, which saves padding and shows at once whether memory suffices.

    Args:
        on_batch: called with (batches done, batches) after each.
        should_stop: asked before each batch.

    Returns:
        None if it was stopped.
    """
    was_training = model.training
    model.eval()
    ordered = sorted(samples, key=lambda sample: -len(sample.input_ids))
    total, num_items = 0.0, supervision(ordered)
    starts = range(0, len(ordered), batch_size)
    try:
        for done, start in enumerate(starts, 1):
            if should_stop():
                return None
            with autocast:
                batch = to_batch(ordered[start : start + batch_size], pad_token_id, device)
                total += batch_loss(model, batch, num_items).item()
            on_batch(done, len(starts))
    finally:
        model.train(was_training)
    return Evaluation(total)
