"""How far what a model writes is from what it should have written, counted in words."""

from collections.abc import Iterable, Sequence


def error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Edits per word of the references: sum of edit distances / sum of reference lengths.

    Words are what stands between spaces, so that this is the word error rate of text, and the phoneme error rate of
    phonemes. An edit inserts, deletes or replaces one word; the rate may exceed 1.

    Args:
        pairs: (reference, completion).

    Raises:
        ValueError: no reference has a word.
    """
    edits = words = 0
    for reference, completion in pairs:
        edits += distance(reference.split(), completion.split())
        words += len(reference.split())
    if not words:
        raise ValueError("error_rate: the references have no words")
    return edits / words


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Levenshtein's: the least number of insertions, deletions and replacements that make one the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]
