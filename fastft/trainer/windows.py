"""Which samples each optimizer step sees: a pure function of (seed, step), so that resume needs one number."""

import math
from collections.abc import Sequence
from functools import lru_cache

from fastft.data import batches

Rows = list[list[int]]  # sample indices, one list for each row of a batch


class Windows:
    """Accumulation windows of a run; `windows[step]` is a list of micro-batches, each a list of rows of sample indices.

    An epoch's last window, and its last micro-batch, may be smaller. Nothing is replayed to reach a step.

    Args:
        lengths: tokens of each sample.
        batch_size: rows per micro-batch.
        accumulation: micro-batches per window.
        seed, group_by_length: of the shuffling, see `fastft.data.batches`.
        rows: samples that share a row, see `fastft.data.packing`; by default each has one of its own.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        accumulation: int,
        seed: int,
        group_by_length: bool = False,
        rows: Rows | None = None,
    ) -> None:
        if rows is not None:
            lengths = [sum(lengths[index] for index in row) for row in rows]

        @lru_cache(maxsize=1)
        def epoch_batches(epoch: int) -> list[list[int]]:
            return batches(lengths, batch_size, seed, epoch, group_by_length=group_by_length)

        self._epoch_batches, self._rows = epoch_batches, rows
        self.accumulation = accumulation
        self.steps_per_epoch = math.ceil(len(epoch_batches(0)) / accumulation)

    def __getitem__(self, step: int) -> list[Rows]:
        epoch, position = divmod(step, self.steps_per_epoch)
        first, rows = position * self.accumulation, self._rows
        window = self._epoch_batches(epoch)[first : first + self.accumulation]
        return [[[place] if rows is None else rows[place] for place in batch] for batch in window]

    def epoch_of(self, step: int) -> int:
        """Number of the pass over the data that a step belongs to."""
        return step // self.steps_per_epoch

    def epoch_at(self, step: int) -> float:
        """Passes over the data that are behind after `step` steps."""
        return step / self.steps_per_epoch
