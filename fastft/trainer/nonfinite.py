"""Bad steps: a loss or gradient that is no number, or a loss far above those of late; and on which samples."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

from torch import Tensor

SHOWN = 32  # samples that a message names
KEPT = 64  # losses that the median is of
FEWEST = 16  # losses before which nothing is called a spike


class BadStep(ArithmeticError):
    """A loss or gradient that is NaN or infinite, or a spike. Weights and optimizer are those before that step."""


class LossWatch:
    """Tells which steps are bad: their loss or gradient norm is not finite, or their loss is a spike.

    A spike is a loss above `factor` times the median of the last 64 finite ones, from the 17th on. The loss of a spike
    is among those 64 afterwards, skipped or not: a lasting rise is refused at most 32 times. Tasks of unlike losses
    that take turns want a watch each.

    Args:
        factor: above 1; None: nothing is a spike.
        losses: those seen so far, oldest first: `losses` of the watch that this one follows, so that a resumed run
            decides as the unkilled one does. A list of floats, fit for JSON.
    """

    def __init__(self, factor: float | None, losses: Iterable[float] = ()) -> None:
        self.factor = factor
        self._losses = deque(losses, KEPT)

    @property
    def losses(self) -> list[float]:
        """The finite ones of the last 64 steps, oldest first."""
        return list(self._losses)

    def judge(
        self, shares: Tensor, grad_norm: float, window: Sequence[Sequence[int]], step: int, learning_rate: float
    ) -> str | None:
        """What is wrong with a step that has not been applied yet; None for a good one.

        Args:
            shares: loss of each micro-batch, (micro-batches,), of all processes: then they agree.
            grad_norm: before clipping.
            window: sample indices of each micro-batch, named in the message: those of batches that are not finite if
                there are any, else all, the batch with the greatest share first.
            step: the step being taken, from 1.
        """
        values = shares.tolist()
        total = sum(values)
        known = len(self._losses)
        usual = median(self._losses) if known >= FEWEST else 0.0
        if math.isfinite(total):
            self._losses.append(total)
        if not (math.isfinite(total) and math.isfinite(grad_norm)):
            faulty = [batch for batch, share in zip(window, values, strict=True) if not math.isfinite(share)]
            why, suspects = "", faulty or window
        elif self.factor is not None and total > self.factor * usual > 0:
            why = f", more than {self.factor:g} times the median {usual:.4g} of the last {known}"
            suspects = [window[i] for i in sorted(range(len(values)), key=lambda i: -values[i])]
        else:
            return None
        samples = [index for batch in suspects for index in batch]
        shown = ", ".join(map(str, samples[:SHOWN])) + (", ..." if len(samples) > SHOWN else "")
        return (
            f"step {step}: loss {total:.6g}{why}, gradient norm {grad_norm:.6g}, on samples {shown} of the training "
            f"data. The step was not applied. Lower learning_rate (now {learning_rate:.2e}) or look at these samples"
        )
