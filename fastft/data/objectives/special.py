"""The special tokens that a tokenizer writes around one text or a pair of them, and those it never writes inside."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

PROBES = ("a", "0", "A", ".")  # texts of which at least one is a token of any vocabulary


class Frame(NamedTuple):
    """What stands around the tokens of a text A and, of a pair, those of B: `before A between B after`.

    Attributes:
        before, between, after: special tokens; `between` is empty for one text.
        types: token types of `before`, A, `between`, B and `after`.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]

    @property
    def size(self) -> int:
        """How many special tokens there are."""
        return len(self.before) + len(self.between) + len(self.after)

    def ids(self, a: Sequence[int], b: Sequence[int] = ()) -> list[int]:
        """`before A between B after`."""
        return [*self.before, *a, *self.between, *b, *self.after]

    def weights(self, a: Sequence[float], b: Sequence[float] = ()) -> list[float]:
        """The same of weights: special tokens have none."""
        before, between, after = ([0.0] * len(ids) for ids in self[:3])
        return [*before, *a, *between, *b, *after]

    def token_types(self, a: int, b: int) -> list[int]:
        """Token types of a pair with so many tokens."""
        before, first, between, second, after = self.types
        return [*before, *[first] * a, *between, *[second] * b, *after]


BARE = Frame([], [], [], ([], 0, [], 0, []))


def frame(tokenizer: Any, *, pair: bool = False) -> Frame:
    """What this tokenizer's post-processor writes, found out by encoding a letter.

    Raises:
        ValueError: the vocabulary has none of the letters tried, or special tokens stand inside a text.
    """
    for text in PROBES:
        encoded = tokenizer([(text, text) if pair else text], return_token_type_ids=True, verbose=False)
        ids, types, of = encoded["input_ids"][0], encoded["token_type_ids"][0], encoded.sequence_ids(0)
        if 0 in of and (1 in of or not pair):
            break
    else:
        raise ValueError(f"tokenizer: its vocabulary has none of {', '.join(PROBES)}; special tokens cannot be found")
    start, end = _run(of, 0)
    start_b, end_b = _run(of, 1) if pair else (end, end)
    if None in of[start:end] or None in of[start_b:end_b] or end > start_b:
        raise ValueError("tokenizer: it writes special tokens into a text, or a pair in another order than A, B")
    parts = types[:start], types[start], types[end:start_b], types[start_b] if pair else 0, types[end_b:]
    return Frame(ids[:start], ids[end:start_b], ids[end_b:], parts)


def _run(of: Sequence[int | None], sequence: int) -> tuple[int, int]:
    places = [place for place, number in enumerate(of) if number == sequence]
    return places[0], places[-1] + 1


def special_ids(tokenizer: Any) -> Any:
    """Ids of every special token, padding, unknown and control tokens among them; (n,) int64, ascending."""
    added = [token for token, content in tokenizer.added_tokens_decoder.items() if content.special]
    return np.unique(np.asarray([*tokenizer.all_special_ids, *added], np.int64))


def ordinary_ids(tokenizer: Any) -> Any:
    """Ids of every other token of the vocabulary; (n,) int64, ascending."""
    return np.setdiff1d(np.asarray(list(tokenizer.get_vocab().values()), np.int64), special_ids(tokenizer))
