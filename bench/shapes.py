"""Shapes worth measuring: the output heads of real models, and the cases made of them.

N tokens, D hidden size, V vocabulary, M supervised tokens; x (N, D), w (V, D), y (N,).
"""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORE_INDEX = -100
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
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


@dataclass(frozen=True)
class Inputs:
    """Leaves with `requires_grad` set, and labels of which `IGNORE_INDEX` carry nothing to learn."""

    x: Tensor  # (N, D)
    w: Tensor  # (V, D)
    y: Tensor  # (N,) int64

    def reset(self) -> None:
        self.x.grad = self.w.grad = None

    @property
    def gradients(self) -> tuple[Tensor, Tensor]:
        """dx and dw of the last backward; raises `RuntimeError` if there are none."""
        if self.x.grad is None or self.w.grad is None:
            raise RuntimeError("the provider left no gradient for x or for w")
        return self.x.grad, self.w.grad


@dataclass(frozen=True)
class Head:
    """One case of linear cross-entropy; `ignored` is the share of tokens without a label, in [0, 1)."""

    name: str
    N: int
    D: int
    V: int
    dtype: str
    ignored: float
    device: str = "cpu"

    @property
    def M(self) -> int:
        return self.N - round(self.N * self.ignored)

    @property
    def shape(self) -> dict[str, int]:
        return {"N": self.N, "D": self.D, "V": self.V, "M": self.M}

    @property
    def flops(self) -> int:
        """Useful floating-point operations of forward and backward: three GEMMs of the supervised rows."""
        return 6 * self.M * self.V * self.D

    @property
    def gradient_bytes(self) -> int:
        return (self.N + self.V) * self.D * DTYPES[self.dtype].itemsize

    @property
    def eager_bytes(self) -> int:
        """What eager takes: logits, their log-softmax and its gradient of all N tokens, and the gradients."""
        return 3 * self.N * self.V * DTYPES[self.dtype].itemsize + self.gradient_bytes

    def __str__(self) -> str:
        size = f"{self.N}x{self.D}x{self.V}"
        return f"{self.device}-{self.name}-{size}-{self.dtype}-ignored{round(100 * self.ignored)}"

    def reduced(self) -> "Head":
        """The same case at a size where an fp64 reference costs nothing."""
        return replace(self, N=min(self.N, 256), V=min(self.V, 2048))

    def inputs(self, upcast: torch.dtype | None = None, seed: int = 0) -> Inputs:
        """Logits of unit variance, uniform labels, ignored positions spread at random; always the same for a case.
        `upcast` gives the very same values in a wider dtype."""
        random = torch.Generator().manual_seed(seed)
        dtype = DTYPES[self.dtype]
        x = torch.randn(self.N, self.D, generator=random).to(dtype)
        w = torch.randn(self.V, self.D, generator=random).mul_(self.D**-0.5).to(dtype)
        y = torch.randint(self.V, (self.N,), generator=random)
        y[torch.randperm(self.N, generator=random)[self.M :]] = IGNORE_INDEX
        x, w = (tensor.to(self.device, upcast or dtype).requires_grad_() for tensor in (x, w))
        return Inputs(x, w, y.to(self.device))


def head_cases(heads: dict[str, Sizes]) -> list[Head]:
    """The grid, by device; the share of ignored tokens varies fastest and starts at 0. GPUs train in bf16."""
    return [
        Head(name, n, d, v, dtype, ignored, device)
        for device, sizes in heads.items()
        for (name, (n, d, v)), dtype, ignored in itertools.product(sizes.items(), DTYPES, IGNORED_SHARES)
        if device == "cpu" or dtype == "bf16"
    ]
