"""Loss and perplexity on held-out samples."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from fastft.data import Corpus, Draw, Objective
from fastft.data.attention import forward
from fastft.data.batch import blank
from fastft.data.draws import EVALUATION
from fastft.trainer.distributed import World
from fastft.trainer.evaluation.watched import Watched
from fastft.trainer.gradient import losses_of

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
    watched: Watched | None = None,
    world: World | None = None,
) -> Evaluation | None:
    """The weighted loss, the same for every batch size and number of processes up to rounding.

    Samples go by length, the longest first, which saves padding and shows at once whether memory suffices.

    Args:
        on_batch: called with (batches done, batches) after each; of one process.
        should_stop: asked before each batch; all processes stop if one is to.
        watched: told what the model makes of the tokens, the first output, of this process's batches.
        world: the processes that share the batches; by default one does all. Each takes the same number of forward
            passes, the last of which may be of a batch with nothing to learn.

    Returns:
        None if it was stopped.
    """
    rank, size = (0, 1) if world is None else (world.rank, world.size)
    was_training = model.training
    model.eval()
    lengths = corpus.lengths
    ordered = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    starts = range(0, len(ordered), batch_size)
    rounds = -(-len(starts) // size)
    sums: dict[str, list[float]] = {}  # of each output: sum w nll, sum w
    scales: dict[str, float] = {}
    try:
        for turn in range(rounds):
            stop = should_stop()
            if stop if world is None else world.any(stop):
                return None
            place = turn * size + rank
            start = starts[place] if place < len(starts) else 0
            rows = [[index] for index in ordered[start : start + batch_size]]
            batch = objective.batch(corpus.samples, rows, CHOICES)
            batch = batch if place < len(starts) else blank(batch)
            for target in batch.targets:
                scales[target.output] = target.scale
                sums.setdefault(target.output, [0.0, 0.0])[1] += target.total
            batch = batch.to(device)
            with autocast:
                outputs = forward(model, batch)
                losses = losses_of(outputs, batch, dict.fromkeys(sums, 1.0))
            for output, loss in losses.items():
                sums[output][0] += loss.item()
            if watched is not None:
                tokens = batch.targets[0]
                watched.see(getattr(outputs, tokens.output), tokens.labels, tokens.weights)
            on_batch(turn + 1, rounds)
    finally:
        model.train(was_training)
    if world is not None:
        whole = world.sum(torch.tensor(list(sums.values()), dtype=torch.float64))
        sums = dict(zip(sums, whole.tolist(), strict=True))
    parts = {output: total / (weight or 1.0) for output, (total, weight) in sums.items()}
    return Evaluation(sum(scales[output] * loss for output, loss in parts.items()), parts)
