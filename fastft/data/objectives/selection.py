"""Which of n positions are to be predicted: each is chosen with probability p, alone, with its word or in a span.

A result is (n,) int: the unit that a chosen position belongs to, -1 for the others. At least one is chosen if n > 0.
"""

from typing import Any

import numpy as np

LONGEST_SPAN = 10


def tokens(n: int, p: float, rng: np.random.Generator) -> Any:
    """Each position by itself."""
    return words(np.arange(n), p, rng)


def words(word: Any, p: float, rng: np.random.Generator) -> Any:
    """Each word as a whole, independently, so that long words are chosen no more often; `word` is (n,), ascending."""
    if not len(word):
        return np.empty(0, np.int64)
    _, number = np.unique(word, return_inverse=True)
    chosen = rng.random(number[-1] + 1) < p
    if not chosen.any():
        chosen[rng.integers(len(chosen))] = True
    return np.where(chosen[number], number, -1)


def spans(n: int, p: float, probabilities: Any, rng: np.random.Generator) -> Any:
    """Spans of 1, 2, .. positions with these probabilities, that do not touch as long as there is room.

    Together they are p n positions long, rounded up or down at random so that the mean is p n; the last span drawn is
    cut to that. Their order and places are uniform.
    """
    unit = np.full(n, -1)
    if not n:
        return unit
    budget = min(n, max(1, int(p * n + rng.random())))
    drawn = 1 + rng.choice(len(probabilities), size=budget, p=probabilities)
    k = int(np.searchsorted(np.cumsum(drawn), budget)) + 1
    lengths = drawn[:k]
    lengths[-1] -= lengths.sum() - budget
    lengths = rng.permutation(lengths)
    free = n - budget
    if k <= free + 1:
        before = np.sort(rng.choice(free + 1, size=k, replace=False))
    else:
        before = np.sort(rng.integers(free + 1, size=k))
    # span i starts behind before[i] positions that are not chosen and all earlier spans
    places = np.repeat(before, lengths) + np.arange(budget)
    unit[places] = np.repeat(np.arange(k), lengths)
    return unit


def span_lengths(mean: float, longest: int = LONGEST_SPAN) -> Any:
    """Probabilities of the lengths 1 .. longest: a geometric distribution cut off there, with this mean.

    SpanBERT (Joshi et al. 2020) has q = 0.2 and a mean of 3.8.

    Raises:
        ValueError: a mean below 1, or not below that of equally probable lengths.
    """
    if not 1 <= mean < (1 + longest) / 2:
        raise ValueError(f"mlm_span_length: got {mean}; at least 1 and below {(1 + longest) / 2} is wanted, a mean")
    lengths = np.arange(1, longest + 1)
    low, high = 0.0, 1.0  # of 1 - q: the mean grows with it
    for _ in range(60):
        ratio = (low + high) / 2
        weights = ratio ** (lengths - 1.0)
        low, high = (low, ratio) if (weights @ lengths) / weights.sum() > mean else (ratio, high)
    return weights / weights.sum()
