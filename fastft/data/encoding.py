"""Rendered records to tokens, each with its weight and its place in the text."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from fastft.data.masking import Rendered, token_weights


class Tokens(NamedTuple):
    """T tokens of one record: ids, weights, and the characters [start, end) of the text that each stands for.

    Tokens that came as such have no characters: (0, 0) each.
    """

    ids: list[int]
    weights: list[float]
    offsets: list[tuple[int, int]]


def encode(records: Sequence[Rendered], tokenizer: Any) -> Iterator[Tokens]:
    """Tokens of each record, with at most one beginning and, if it is closed, one end token, whoever wrote them.

    Those of a record that came as tokens are handed on untouched.

    Raises:
        ValueError: the tokenizer gives no character offsets or has no end token.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} gives no character offsets, from which masks are made; "
            "a fast tokenizer (one with a tokenizer.json) is wanted"
        )
    seams = [0, *(i for i in range(1, len(records)) if _kind(records[i]) != _kind(records[i - 1])), len(records)]
    for start, end in pairwise(seams):
        if start < end:
            yield from _encode_alike(records[start:end], tokenizer)


def _kind(record: Rendered) -> tuple[bool, bool]:
    return record.tokens is not None, record.add_special_tokens


def _encode_alike(records: Sequence[Rendered], tokenizer: Any) -> Iterator[Tokens]:
    if records[0].tokens is not None:
        yield from (Tokens(*record.tokens, [(0, 0)] * len(record.tokens[0])) for record in records if record.tokens)
        return
    encoded = tokenizer(
        [record.text for record in records],
        add_special_tokens=records[0].add_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    for record, ids, offsets in zip(records, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids, offsets = _closed(record, list(ids), list(offsets), tokenizer)
        yield Tokens(ids, token_weights(offsets, record.learned), offsets)


def _closed(
    record: Rendered, ids: list[int], offsets: list[tuple[int, int]], tokenizer: Any
) -> tuple[list[int], list[tuple[int, int]]]:
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id and offsets[0] == (0, 0):
        ids, offsets = ids[1:], offsets[1:]  # the text brings its own
    if record.closed:
        n, end = len(record.text), end_token(tokenizer)
        while ids and ids[-1] == end:
            del ids[-1], offsets[-1]
        ids, offsets = [*ids, end], [*offsets, (n, n + 1)]
    return ids, offsets


def end_token(tokenizer: Any) -> int:
    """The token that ends a text: the end-of-sequence token or, as BERT has none, the separator.

    Raises:
        ValueError: it has neither.
    """
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise ValueError("tokenizer: it has no end token, so a model could never learn to stop; set eos_token")
