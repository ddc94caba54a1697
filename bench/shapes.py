"""Shapes worth measuring: heads of real models, their logits, embedding tables; and the grids of cases made of them."""

import itertools
from collections.abc import Mapping

from bench.cases import DTYPES, Head, Logits
from bench.tables import Table

IGNORED_SHARES = (0.0, 0.50, 0.85, 0.95)

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
        "32k": (4096, 256, 2**15),  # what follows differs in V alone
        "128k": (4096, 256, 2**17),
        "256k": (4096, 256, 2**18),
        "1M": (4096, 256, 2**20),  # dense AdamW holds 4 GiB
    },
    "cuda": {
        "qwen3-8b": (8192, 4096, 151936),
    },
}
SMOKE_TABLES: Sizes = {"tiny": (64, 32, 300), "odd": (33, 23, 257)}


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
    """By device, in fp32."""
    return [Table(name, *size, device=device) for device, sizes in tables.items() for name, size in sizes.items()]
