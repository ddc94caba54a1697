"""Samples as a model takes them: rows of pieces, padded on the right, and what is to be learned of each position."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100
PADDING = -1  # in place of a piece's number


@dataclass(frozen=True)
class Target:
    """What is learned at one output of a model.

    Attributes:
        output: name of the logits, (..., C), among the model's outputs.
        labels: (...) int64, aligned with those logits, already shifted where a model predicts the next token; -100
            where nothing is learned.
        weights: (...) float32, of each label; 0 where that is -100.
        scale: what the mean of this output is multiplied by in the sum over outputs.
    """

    output: str
    labels: Tensor
    weights: Tensor
    scale: float = 1.0

    @cached_property
    def total(self) -> float:
        """sum w, the denominator of the mean."""
        return float(self.weights.double().sum())

    @cached_property
    def count(self) -> int:
        """How many labels there are."""
        return int((self.labels != IGNORE_INDEX).sum())


@dataclass(frozen=True)
class Batch:
    """Keyword arguments of one forward pass, what is learned from it, and how many of its tokens are no padding."""

    inputs: dict[str, Tensor]
    targets: tuple[Target, ...]
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        targets = [
            replace(t, labels=t.labels.to(device, non_blocking=True), weights=t.weights.to(device, non_blocking=True))
            for t in self.targets
        ]
        return Batch(inputs, tuple(targets), self.tokens)


def blank(batch: Batch) -> Batch:
    """The batch with nothing to learn of it, and nothing to count."""
    targets = [
        replace(t, labels=torch.full_like(t.labels, IGNORE_INDEX), weights=torch.zeros_like(t.weights))
        for t in batch.targets
    ]
    return Batch(batch.inputs, tuple(targets), 0)


class Piece(NamedTuple):
    """One sample as a model is to see it: T positions of a row.

    Attributes:
        input_ids: (T,) int.
        labels: (T,) int; `labels[t]` is to be predicted at position t; -100 where nothing is.
        weights: (T,) float, of each label.
        prefix: the first so many positions see each other, whatever the model's direction.
        token_types: (T,) int, for models that are told which of two sentences a token is from.
    """

    input_ids: Any
    labels: Any
    weights: Any
    prefix: int = 0
    token_types: Any = None


def shifted(input_ids: Sequence[int], weights: Sequence[float], prefix: int = 0) -> Piece:
    """A piece in which position t predicts token t + 1, and the last one nothing."""
    ids, w = np.asarray(input_ids), np.asarray([*weights[1:], 0.0], np.float32)
    labels = np.where(w != 0, np.append(ids[1:], IGNORE_INDEX), IGNORE_INDEX)
    return Piece(ids, labels, w, prefix)


def lay_out(
    rows: Sequence[Sequence[Piece]],
    pad_token_id: int,
    *,
    causal: bool,
    native: bool | None = None,
    multiple: int = 1,
    output: str = "logits",
) -> Batch:
    """One batch of B rows of one or more pieces each; T is the longest row, rounded up to a multiple.

    A piece sees no other piece of its row, and its positions count from 0. Alone in its row and without a prefix it is
    told from padding by an `attention_mask` (B, T). Causal pieces that share a row are told apart by `position_ids`
    (B, T) alone, from which transformers masks them. Else `attention_mask` is (B, 1, T, T), True where position i sees
    position j; so it is too where a model that is causal by itself is to be none, or the other way round (`native`).

    Padding is told by place, never by id, so a pad token that is also the end token does no harm.

    Raises:
        ValueError: no rows, a row without pieces, or a multiple below 1.
        TypeError: `pad_token_id` is not an int.
    """
    if not rows or not all(rows):
        raise ValueError("samples: got none; each row of a batch needs at least one")
    if not isinstance(pad_token_id, int):
        raise TypeError(f"pad_token_id: got {pad_token_id!r}; an int is wanted (any id will do, padding is never read)")
    if multiple < 1:
        raise ValueError(f"multiple: got {multiple}; at least 1 is wanted")
    longest = max(sum(len(piece.input_ids) for piece in row) for row in rows)
    shape = (len(rows), -(-longest // multiple) * multiple)
    input_ids, labels = np.full(shape, pad_token_id, np.int64), np.full(shape, IGNORE_INDEX, np.int64)
    weights, types = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    pieces, positions = np.full(shape, PADDING), np.zeros(shape, np.int64)
    prefixed = np.zeros(shape, bool)
    for b, row in enumerate(rows):
        end = 0
        for number, piece in enumerate(row):
            start, end = end, end + len(piece.input_ids)
            input_ids[b, start:end], labels[b, start:end], weights[b, start:end] = piece[:3]
            pieces[b, start:end], positions[b, start:end] = number, np.arange(end - start)
            prefixed[b, start : start + piece.prefix] = True
            if piece.token_types is not None:
                types[b, start:end] = piece.token_types
        positions[b, end:] = np.arange(shape[1] - end)
    inputs: dict[str, Any] = {"input_ids": input_ids}
    packed = any(len(row) > 1 for row in rows)
    if prefixed.any() or (packed and not causal) or native not in (None, causal):
        inputs["attention_mask"] = sees(pieces, prefixed, causal=causal)[:, None]
    elif not packed:
        inputs["attention_mask"] = (pieces != PADDING).astype(np.int64)
    if packed:
        inputs["position_ids"] = positions
    if any(piece.token_types is not None for row in rows for piece in row):
        inputs["token_type_ids"] = types
    target = Target(output, torch.from_numpy(labels), torch.from_numpy(weights))
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return Batch(tensors, (target,), int((pieces != PADDING).sum()))


def sees(pieces: Any, prefixed: Any, *, causal: bool) -> Any:
    """(B, T, T) bool: position i sees j. Padding sees itself, as a softmax over nothing is no number."""
    same = pieces[:, :, None] == pieces[:, None, :]
    if not causal:
        return same
    t = pieces.shape[1]
    earlier = np.arange(t)[:, None] >= np.arange(t)[None, :]
    return same & (earlier | (prefixed[:, :, None] & prefixed[:, None, :]))
