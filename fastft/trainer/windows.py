"""Which samples each optimizer step sees: a pure function of (seed, step), so that resume needs one number."""

import math
from collections.abc import Sequence
from functools import lru_cache

from fastft.data import batches


class Windows:
    """Accumulation windows of a run; `windows[step]` is a list of micro-batches, each a list of sample indices.

    An epoch's last window, and its last micro-batch, may be smaller. Nothing is replayed to reach a step.

    Args:
        lengths: tokens of each sample.
        batch_size: samples per micro-batch.
        accumulation: micro-batches per window.
        seed, group_by_length: of the shuffling, see `fastft.data.batches`.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, accumulation: int, seed: int, group_by_length: bool = False
    ) -> None:
        @lru_cache(maxsize=1)
        def epoch_batches(epoch: int) -> list[list[int]]:
            return batches(lengths, batch_size, seed, epoch, group_by_length=group_by_length)

        self._epoch_batches = epoch_batches
        self.accumulation = accumulation
        self.steps_per_epoch = math.ceil(len(epoch_batches(0)) / accumulation)

    def __getitem__(self, step: int) -> list[list[int]]:
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.accumulation
        return self._epoch_batches(epoch)[first : first + self.accumulation]

    def epoch_at(self, step: int) -> float:
        """Passes over the data that are behind after `step` steps."""
        return step / self.steps_per_epoch
