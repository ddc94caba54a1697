"""Random choices about samples: pure functions of (seed, epoch, sample), so that workers, ranks and resume agree."""

import hashlib
from typing import NamedTuple

import numpy as np

EVALUATION = -1  # in place of an epoch: the same choices every time


class Draw(NamedTuple):
    """Which choices: those of a run's seed in one of its epochs."""

    seed: int
    epoch: int

    def random(self, purpose: str, index: int) -> np.random.Generator:
        """The generator of one sample's choices for one purpose; always the same numbers, on any machine."""
        key = hashlib.blake2b(f"{purpose}/{self.seed}/{self.epoch}/{index}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
