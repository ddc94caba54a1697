"""Order of samples and batches: a pure function of (seed, epoch, lengths).

Nothing here holds state, so a run resumes from (epoch, index of the next batch) alone, and every rank or worker that
asks gets the same answer.
"""

import hashlib
import random
from collections.abc import Sequence

POOL = 50  # batches whose samples are sorted together: large enough to save padding, small enough to stay random


def order(n: int, seed: int, epoch: int) -> list[int]:
    """A permutation of `range(n)`."""
    indices = list(range(n))
    _generator("order", seed, epoch).shuffle(indices)
    return indices


def batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, *, group_by_length: bool = False
) -> list[list[int]]:
    """Batches of sample indices for one epoch; each sample is in exactly one.

    Args:
        lengths: tokens per sample.
        batch_size: samples per batch; the last batch of the epoch may be smaller.
        seed, epoch: the same pair gives the same batches, everywhere and always.
        group_by_length: put samples of similar length together, which saves padding. Samples are shuffled first and
            sorted within pools of 50 batches, so batches still differ from epoch to epoch. The full batch with the
            longest sample comes first: what does not fit in memory fails at once and not after an hour.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; at least 1 is wanted")
    indices = order(len(lengths), seed, epoch)
    if not group_by_length:
        return _chunks(indices, batch_size)
    pools = _chunks(indices, batch_size * POOL)
    grouped = [
        batch for pool in pools for batch in _chunks(sorted(pool, key=lambda index: -lengths[index]), batch_size)
    ]
    _generator("groups", seed, epoch).shuffle(grouped)
    grouped.sort(key=lambda batch: len(batch) < batch_size)  # stable: only the short batch moves, to the end
    full = len(lengths) // batch_size
    if full:
        longest = max(range(full), key=lambda place: max(lengths[index] for index in grouped[place]))
        grouped[0], grouped[longest] = grouped[longest], grouped[0]
    return grouped


def _chunks(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _generator(purpose: str, seed: int, epoch: int) -> random.Random:
    digest = hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
