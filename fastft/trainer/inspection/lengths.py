"""How long samples are, and how much of a batch is padding."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastft.data.packing import pack
from fastft.trainer.tasks import Task

BINS = 12
QUANTILES = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
WINDOWS = 1000  # of which padding is counted
MADE_WINDOWS = 50
KEPT_LENGTHS = ("clm", "prefix_lm", "mlm", "seq2seq")  # a batch holds samples as long as they are
INPUTS = ("input_ids", "decoder_input_ids")
PACKED = 50_000  # samples that are packed to see how full rows would be


@dataclass(frozen=True)
class Lengths:
    """Tokens of n samples.

    Attributes:
        name: what they are of: `sample`, or `source` or `target`.
        limit, bound: what they are limited to, and by what.
        quantiles: by name, as in `QUANTILES`: the least length that this share of the samples does not exceed.
        edges, counts: `counts[i]` samples have `edges[i]` to `edges[i + 1] - 1` tokens.
    """

    name: str
    limit: int
    bound: str
    quantiles: dict[str, int]
    edges: list[int]
    counts: list[int]


def lengths_of(task: Task) -> list[Lengths]:
    """Of its samples; of source and target apart where an encoder and a decoder take them."""
    limits = [("max_length", task.objective.max_length)]
    if task.objective.name == "seq2seq":
        limits.append(("max_target_length", task.objective.target_limit))  # type: ignore[attr-defined]
    elif hasattr(task.objective, "block_length"):
        bound = f"a block for max_length {task.objective.max_length:,} once corrupted,"
        limits = [(bound, task.objective.block_length)]
    return [
        histogram(name, side, limit, bound)
        for (name, side), (bound, limit) in zip(sides(task).items(), limits, strict=True)
    ]


def sides(task: Task) -> dict[str, Any]:
    """Tokens in each sample, (n,), of what is padded together."""
    samples = task.train.samples
    if task.objective.name != "seq2seq":
        return {"sample": samples.lengths}
    sources = np.asarray(samples.arrays["boundaries"], np.int64)
    return {"source": sources, "target": samples.lengths - sources}


def histogram(name: str, lengths: Any, limit: int, bound: str = "max_length") -> Lengths:
    """Of n >= 1 lengths, in at most 12 bins, whose width is a round number."""
    shortest, longest = int(lengths.min()), int(lengths.max())
    width = _round_width((longest - shortest + 1) / (BINS - 1))
    edges = np.arange(shortest // width * width, longest + width + 1, width)
    edges = edges[: np.searchsorted(edges, longest, side="right") + 1]
    counts, _ = np.histogram(lengths, edges)
    found = np.quantile(lengths, list(QUANTILES.values()), method="inverted_cdf")
    quantiles = {name: int(value) for name, value in zip(QUANTILES, found, strict=True)}
    return Lengths(name, limit, bound, quantiles, edges.tolist(), counts.tolist())


def _round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below `least`."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= least:
                return digit * power
        power *= 10


def padding_share(task: Task) -> float:
    """Share of padding in the batches of the first epoch.

    Of its first 1,000 windows at most, or of 50 where batches have to be made, as what is drawn decides their lengths.
    """
    used = area = 0
    if task.objective.name not in KEPT_LENGTHS:
        for visit in range(min(task.windows.steps_per_epoch, MADE_WINDOWS)):
            for made in task.batches(visit, 1):
                used += made.tokens
                area += sum(made.inputs[name].numel() for name in INPUTS if name in made.inputs)
        return 1 - used / area
    arrays = list(sides(task).values())
    for step in range(min(task.windows.steps_per_epoch, WINDOWS)):
        for batch in task.windows[step]:
            for lengths in arrays:
                rows = [int(lengths[row].sum()) for row in batch]
                used, area = used + sum(rows), area + max(rows) * len(rows)
    return 1 - used / area


def packed_fill(task: Task) -> float | None:
    """How full rows are if samples share them, as they do or would; None where this objective shares none."""
    if task.filled is not None or not task.objective.packs:
        return task.filled
    lengths = task.train.samples.lengths[:PACKED].tolist()
    return float(sum(lengths) / (len(pack(lengths, task.config.max_length)) * task.config.max_length))
