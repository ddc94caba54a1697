"""What the positions of a batch see of one another: lengths of its samples, and pairs that a mask lets through."""

from itertools import pairwise

from torch import Tensor

from fastft.data import Batch
from fastft.data.batch import IGNORE_INDEX


def lengths_of(batch: Batch) -> dict[str, list[int]]:
    """Tokens of each sample, by side: "source", and "target" where there is a decoder of its own. No padding."""
    found: dict[str, list[int]] = {}
    for side, stem in (("source", ""), ("target", "decoder_")):
        ids, mask = batch.inputs.get(f"{stem}input_ids"), batch.inputs.get(f"{stem}attention_mask")
        places = batch.inputs.get("position_ids")
        if ids is None:
            continue
        if mask is not None and mask.dim() == 2:
            found[side] = mask.sum(1).tolist()
        elif mask is None and places is None:
            found[side] = [ids.shape[1]] * len(ids)
        else:
            ends = [ids.shape[1] - count for count in _padding(batch)]
            found[side] = ends if places is None else _pieces(places, ends)
    return found


def _pieces(places: Tensor, ends: list[int]) -> list[int]:
    """Lengths of what shares rows, told by positions (B, T) that begin at 0, up to each row's end."""
    found = []
    for row, end in zip(places, ends, strict=True):
        starts = [*(row[:end] == 0).nonzero()[:, 0].tolist(), end]
        found += [b - a for a, b in pairwise(starts)]
    return found


def seen_pairs(batch: Batch) -> float | None:
    """How many pairs of positions a mask (B, 1, T, T) lets see one another; None without such a mask."""
    mask = batch.inputs.get("attention_mask")
    if mask is None or mask.dim() != 4:
        return None
    ends = [mask.shape[-1] - count for count in _padding(batch)]
    return float(sum(int(rows[0, :end].sum()) for rows, end in zip(mask, ends, strict=True)))


def _padding(batch: Batch) -> list[int]:
    """Of each row that positions (B, T) or a mask (B, 1, T, T) cut into pieces, how many of its last positions are
    padding: the last piece, if it is one token over and over of which nothing is learned."""
    ids, labels = batch.inputs["input_ids"], batch.targets[0].labels
    places = batch.inputs.get("position_ids")
    sizes = batch.inputs["attention_mask"][:, 0, -1].sum(-1) if places is None else places[:, -1] + 1
    found = []
    for row, size in enumerate(sizes.tolist()):
        last = slice(ids.shape[1] - size, None)
        same = (ids[row, last] == ids[row, -1]).all() and (labels[row, last] == IGNORE_INDEX).all()
        found.append(size if same and size < ids.shape[1] else 0)
    return found
