"""Shapes worth measuring: heads of real models, their logits, embedding tables; and the cases made of them: grids, and
series in which one axis grows."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from bench.cases import DTYPES, Head, Kind, Logits
from bench.tables import BATCHES, Table

Extent = Literal["smoke", "usual", "all"]
IGNORED_SHARES = (0.0, 0.50, 0.85, 0.95)
USUAL_SHARE = 0.85  # the one that is always measured
ALSO_DENSE = ("smollm2", "llama3", "mistral-nemo")  # always measured, in bf16, with a label at every token too

Sizes = dict[str, tuple[int, int, int]]  # name: (N, D, V)
HEADS: dict[str, Sizes] = {
    "cpu": {
        "smollm2": (2048, 576, 49152),  # SmolLM2-135M
        "gemma3": (1024, 640, 262144),  # Gemma-3-270M: the vocabulary is everything
        "minilm": (4096, 384, 30522),  # MiniLM, any BERT-like encoder of that width
        "thin": (8192, 64, 32000),  # so little arithmetic per logit that every pass over the logits shows
    },
    "cuda": {
        "llama3": (8192, 4096, 128256),  # Llama-3-8B
        "llama3-short": (1024, 4096, 128256),  # one sequence of it
        "qwen3.5": (16384, 2048, 248320),  # a 250k vocabulary
        "modernbert": (4096, 768, 50368),  # ModernBERT-base, MLM
    },
}
SMOKE_HEADS = {"tiny": (64, 32, 300), "odd": (33, 24, 257)}

LogitSizes = dict[str, tuple[int, int]]  # name: (N, V)
LOGITS: dict[str, LogitSizes] = {
    "cpu": {
        "smollm2": (2048, 49152),
        "llama2": (8192, 32000),
    },
    "cuda": {
        "mistral-nemo": (8192, 131072),  # the size other kernels publish
        "modernbert": (4096, 50368),
        "gemma3": (1024, 262144),  # the longest row
    },
}
SMOKE_LOGITS = {"tiny": (64, 300), "odd": (33, 257)}
LOGIT_BUFFERS = 7  # a race's: values, logits, the floor's rows, eager's gradient for comparison, and what eager takes
FP32_ON_CUDA = ("mistral-nemo",)  # logits that are measured in fp32 as well, as a trainer that upcasts them has them

TABLES: dict[str, Sizes] = {
    "cpu": {
        "qwen2.5": (4096, 896, 151936),  # Qwen2.5-0.5B
    },
    "cuda": {
        "qwen3-8b": (8192, 4096, 151936),
    },
}
SMOKE_TABLES: Sizes = {"tiny": (64, 32, 300), "odd": (33, 23, 257)}


# Where the axes of a series rest while one of them grows.
HEAD_REST = {"cpu": {"N": 2048, "M": 256, "V": 16384, "D": 256}, "cuda": {"N": 8192, "M": 1024, "V": 65536, "D": 2048}}
TABLE_REST = {"cpu": {"N": 4096, "D": 256, "V": 2**17}, "cuda": {"N": 8192, "D": 1024, "V": 2**17}}
HEAD_GROWTH = {"N": (0.25, 1, 2, 4), "M": (0.25, 1, 4, 8), "V": (0.25, 0.5, 1, 2), "D": (0.5, 1, 2, 4)}
BATCH_GROWTH = (0.125, 0.5, 2, 4)  # of N, and so of U
HEIGHTS, TALLEST = (2**14, 2**16, 2**18), 2**20  # V; the tallest takes half a minute


def of_extent(extent: Extent, cases: Iterable[Kind]) -> list[Kind]:
    """All of them, or those that are usual."""
    cases = list(cases)
    if extent != "usual":
        return cases
    return [
        c for c in cases if c.ignored == USUAL_SHARE or (c.ignored == 0 and c.dtype == "bf16" and c.name in ALSO_DENSE)
    ]


def head_series(device: str, extent: Extent) -> list[Head]:
    """One axis grows, the others rest; "head-M" is a case of the series along M."""
    dtype, rest, cases = "fp32" if device == "cpu" else "bf16", dict(HEAD_REST[device]), []
    if extent == "smoke":
        rest |= {"N": 128, "M": 16, "V": 256, "D": 32}
    for axis, factors in HEAD_GROWTH.items():
        for factor in factors:
            size = rest | {axis: int(rest[axis] * factor)}
            ignored = 1 - size["M"] / size["N"]
            cases.append(Head(f"head-{axis}", size["N"], size["D"], size["V"], dtype, ignored, device))
    return cases


def table_series(device: str, extent: Extent) -> list[Table]:
    """Along U the batch grows, the table does not; along V the table grows, and the rows that are read are the same."""
    N, D, V = TABLE_REST[device].values()
    heights = (*HEIGHTS, TALLEST) if extent == "all" else HEIGHTS
    if extent == "smoke":
        N, D, V, heights = 64, 16, 512, (256, 512, 1024)
    base = Table("table-U", N, D, V, device=device)
    batches = [replace(base, N=int(N * factor)) for factor in BATCH_GROWTH]
    return batches + [replace(base, name="table-V", V=height, among=heights[0]) for height in heights]


def head_cases(heads: Mapping[str, Sizes]) -> list[Head]:
    """The grid, by device; the share of ignored tokens varies fastest and starts at 0. GPUs train in bf16."""
    return [
        Head(name, n, d, v, dtype, ignored, device)
        for device, sizes in heads.items()
        for (name, (n, d, v)), dtype, ignored in itertools.product(sizes.items(), DTYPES, IGNORED_SHARES)
        if device == "cpu" or dtype == "bf16"
    ]


def logit_cases(logits: Mapping[str, LogitSizes], cuda_bytes: int | None = None) -> list[Logits]:
    """The same grid of logits, without what a GPU of so many bytes has no room for."""
    cases = [
        Logits(name, n, v, dtype, ignored, device)
        for device, sizes in logits.items()
        for (name, (n, v)), dtype, ignored in itertools.product(sizes.items(), DTYPES, IGNORED_SHARES)
        if device == "cpu" or dtype == "bf16" or name in FP32_ON_CUDA
    ]
    return [c for c in cases if c.device == "cpu" or cuda_bytes is None or LOGIT_BUFFERS * c.bytes <= cuda_bytes]


def table_cases(tables: Mapping[str, Sizes]) -> list[Table]:
    """By device, in fp32, in mid-run; and on the CPU, where state of new rows is memory that the system has yet to
    find, at the beginning, where many are new.
    """
    cases = [Table(name, *size, device=device) for device, sizes in tables.items() for name, size in sizes.items()]
    early = [replace(c, name=f"{c.name}-new-rows", warm_up=BATCHES // 4) for c in cases if c.device == "cpu"]
    return cases + early
