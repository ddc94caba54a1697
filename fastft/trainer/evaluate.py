"""Loss and perplexity on held-out samples."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from fastft.data import Corpus, Draw, Objective
from fastft.data.draws import EVALUATION
from fastft.trainer.gradient import batch_losses

CHOICES = Draw(0, EVALUATION)  # what is masked in an evaluation does not depend on the run


@dataclass(frozen=True)
class Evaluation:
    """eval_loss: sum over outputs of sum w nll / sum w over all held-out labels, nats, times its target's scale; parts:
    each of those, not scaled.
    perplexity: its exponential; None for a sum over several outputs, which is no mean over tokens."""

    eval_loss: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float | None:
        if len(self.parts) > 1:
            return None
        return math.exp(self.eval_loss) if self.eval_loss < 700 else math.inf


@torch.no_grad()
def evaluate(
    model: Any,
    objective: Objective,
    corpus: Corpus,
    batch_size: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """The weighted loss, the same for every batch size up to rounding.

    Samples go by length, the longest first, which saves padding and shows at once whether memory suffices.

    Args:
        on_batch: called with (batches done, batches) after each.
        should_stop: asked before each batch.

    Returns:
        None if it was stopped.
    """
    was_training = model.training
    model.eval()
    lengths = corpus.lengths
    ordered = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    scales: dict[str, float] = {}
    starts = range(0, len(ordered), batch_size)
    try:
        for done, start in enumerate(starts, 1):
            if should_stop():
                return None
            rows = [[index] for index in ordered[start : start + batch_size]]
            batch = objective.batch(corpus.samples, rows, CHOICES)
            for target in batch.targets:
                weights[target.output] = weights.get(target.output, 0.0) + target.total
                scales[target.output] = target.scale
            with autocast:
                losses = batch_losses(model, batch.to(device), dict.fromkeys(weights, 1.0))
            for output, loss in losses.items():
                sums[output] = sums.get(output, 0.0) + loss.item()
            on_batch(done, len(starts))
    finally:
        model.train(was_training)
    parts = {output: total / (weights[output] or 1.0) for output, total in sums.items()}
    return Evaluation(sum(scales[output] * loss for output, loss in parts.items()), parts)
