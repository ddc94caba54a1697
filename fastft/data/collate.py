"""Samples to tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastft.data.sample import Sample

IGNORE_INDEX = -100


def collate(samples: Sequence[Sample], pad_token_id: int, pad_to_multiple_of: int = 1) -> dict[str, Tensor]:
    """One batch of B samples, padded on the right to T, the longest (rounded up to `pad_to_multiple_of`).

    Labels come from weights alone, so a pad token that is also the end token does no harm.

    Returns:
        `input_ids`: (B, T) int64.
        `attention_mask`: (B, T) int64, 1 on real tokens. Made from lengths, never from ids.
        `labels`: (B, T) int64, equal to `input_ids` where the weight is not 0, else -100. Not shifted: `labels[b, t]`
        is predicted from the positions before t, as Hugging Face models take it.
        `token_weight`: (B, T) float32, weight of `labels[b, t]`, 0 where that is -100. Present only if some weight is
        neither 0 nor 1.

    Raises:
        ValueError: no samples, or a multiple below 1.
        TypeError: `pad_token_id` is not an int.
    """
    if not samples:
        raise ValueError("samples: got none; a batch needs at least one")
    if not isinstance(pad_token_id, int):
        raise TypeError(f"pad_token_id: got {pad_token_id!r}; an int is wanted (any id will do, padding is never read)")
    if pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of: got {pad_to_multiple_of}; at least 1 is wanted")
    longest = max(len(sample.input_ids) for sample in samples)
    length = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    shape = (len(samples), length)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    weights = torch.zeros(shape, dtype=torch.float32)
    for row, sample in enumerate(samples):
        n = len(sample.input_ids)
        input_ids[row, :n] = torch.tensor(sample.input_ids, dtype=torch.int64)
        attention_mask[row, :n] = 1
        weights[row, :n] = torch.tensor(sample.weights, dtype=torch.float32)
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": input_ids.masked_fill(weights == 0, IGNORE_INDEX),
    }
    if not bool(((weights == 0) | (weights == 1)).all()):
        batch["token_weight"] = weights
    return batch
