"""A run stops at the first loss or gradient that is no number, and says on which samples."""

import math
from collections.abc import Sequence

from torch import Tensor

SHOWN = 32


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient that is NaN or infinite. Weights and optimizer are those before that step."""


def refuse_non_finite(
    shares: Tensor, grad_norm: float, window: Sequence[Sequence[int]], step: int, learning_rate: float
) -> None:
    """Check a step before it is applied.

    Args:
        shares: loss of each micro-batch, (micro-batches,).
        grad_norm: before clipping.
        window: sample indices of each micro-batch, named in the message.
        step: the step being taken, from 1.

    Raises:
        NonFiniteLoss: if any of them is not finite.
    """
    finite = shares.isfinite().tolist()
    if all(finite) and math.isfinite(grad_norm):
        return
    suspects = [batch for batch, good in zip(window, finite, strict=True) if not good] or window
    samples = [index for batch in suspects for index in batch]
    shown = ", ".join(map(str, samples[:SHOWN])) + (", ..." if len(samples) > SHOWN else "")
    raise NonFiniteLoss(
        f"step {step}: loss {shares.sum().item()}, gradient norm {grad_norm}, on samples {shown} of the training data. "
        f"The step was not applied. Lower learning_rate (now {learning_rate:.2e}) or look at these samples; "
        "a checkpoint from before can be resumed"
    )
