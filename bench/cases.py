"""One case of an op: its size, its inputs, and what it takes at least.

N tokens, D hidden size, V vocabulary, M supervised tokens; x (N, D), w (V, D), z (N, V), y (N,).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

IGNORE_INDEX = -100  # every peer's default
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Kind = TypeVar("Kind", bound="Case")


class Inputs(Protocol):
    """What a provider is given, and what it left."""

    def reset(self) -> None:
        """As if nobody had been here."""

    @property
    def left(self) -> Mapping[str, Tensor]:
        """By name, what the last call left: a loss its gradients. Raises `RuntimeError` if there is nothing."""


class Case:
    """What one race measures; `ignored` is the share of tokens without a label, in [0, 1). So many calls come before
    round 0 as `warm_up` says, for the state that a step in mid-run starts from.
    """

    name: str
    N: int
    V: int
    dtype: str
    ignored: float
    device: str
    warm_up = 0

    @property
    def M(self) -> int:
        return self.N - round(self.N * self.ignored)

    @property
    def size(self) -> dict[str, int]:
        raise NotImplementedError

    @property
    def shape(self) -> dict[str, int]:
        return {**self.size, "M": self.M}

    @property
    def flops(self) -> int | None:
        """Useful floating-point operations of forward and backward, where they are what bounds the op."""
        return None

    @property
    def traffic(self) -> int | None:
        """Bytes that must be read or written, where they are what bounds the op."""
        return None

    @property
    def uncounted_bytes(self) -> int:
        """What every provider takes, and a row's memory leaves out."""
        return 0

    @property
    def eager_bytes(self) -> int:
        """What eager takes."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.place}-ignored{round(100 * self.ignored)}"

    @property
    def place(self) -> str:
        size = "x".join(map(str, self.size.values()))
        return f"{self.device}-{self.name}-{size}-{self.dtype}"

    def reduced(self: Kind) -> Kind:
        """The same case at a size where an fp64 reference costs nothing."""
        return replace(self, N=min(self.N, 256), V=min(self.V, 2048))  # type: ignore[type-var]

    def inputs(self, upcast: torch.dtype | None = None, seed: int = 0) -> Inputs:
        """Logits of unit variance, uniform labels, ignored positions spread at random; always the same for a case.
        `upcast` gives the very same values in a wider dtype."""
        raise NotImplementedError

    def labels(self, random: torch.Generator) -> Tensor:
        y = torch.randint(self.V, (self.N,), generator=random, device=random.device)
        y[torch.randperm(self.N, generator=random, device=random.device)[self.M :]] = IGNORE_INDEX
        return y


@dataclass(frozen=True)
class HeadInputs:
    """Leaves with `requires_grad` set, and labels of which `IGNORE_INDEX` carry nothing to learn."""

    x: Tensor  # (N, D)
    w: Tensor  # (V, D)
    y: Tensor  # (N,) int64

    def reset(self) -> None:
        self.x.grad = self.w.grad = None

    @property
    def left(self) -> dict[str, Tensor]:
        if self.x.grad is None or self.w.grad is None:
            raise RuntimeError("the provider left no gradient for x or for w")
        return {"dx": self.x.grad, "dw": self.w.grad}


@dataclass(frozen=True)
class Head(Case):
    """One case of linear cross-entropy."""

    name: str
    N: int
    D: int
    V: int
    dtype: str
    ignored: float
    device: str = "cpu"

    @property
    def size(self) -> dict[str, int]:
        return {"N": self.N, "D": self.D, "V": self.V}

    @property
    def flops(self) -> int:
        """Three GEMMs of the supervised rows."""
        return 6 * self.M * self.V * self.D

    @property
    def uncounted_bytes(self) -> int:
        """The gradients."""
        return (self.N + self.V) * self.D * DTYPES[self.dtype].itemsize

    @property
    def eager_bytes(self) -> int:
        """Logits, their log-softmax and its gradient of all N tokens, and the gradients."""
        return 3 * self.N * self.V * DTYPES[self.dtype].itemsize + self.uncounted_bytes

    def inputs(self, upcast: torch.dtype | None = None, seed: int = 0) -> HeadInputs:
        random = torch.Generator(self.device).manual_seed(seed)
        dtype = DTYPES[self.dtype]
        x = torch.randn(self.N, self.D, generator=random, device=self.device).to(dtype)
        w = torch.randn(self.V, self.D, generator=random, device=self.device).mul_(self.D**-0.5).to(dtype)
        y = self.labels(random)
        x, w = (tensor.to(upcast or dtype).requires_grad_() for tensor in (x, w))
        return HeadInputs(x, w, y)


@dataclass
class LogitInputs:
    """A leaf with `requires_grad` set, its labels, and its values, for a provider may overwrite its logits."""

    z: Tensor  # (N, V)
    y: Tensor  # (N,) int64
    values: Tensor  # (N, V)
    dz: Tensor | None = None  # may be memory of z

    def reset(self) -> None:
        self.dz = None
        self.z.detach().copy_(self.values)

    @property
    def left(self) -> dict[str, Tensor]:
        if self.dz is None:
            raise RuntimeError("the provider left no gradient for z")
        return {"dz": self.dz}


@dataclass(frozen=True)
class Logits(Case):
    """One case of cross-entropy of given logits. A row's memory counts the gradient, which some put where the logits
    were."""

    name: str
    N: int
    V: int
    dtype: str
    ignored: float
    device: str = "cpu"

    @property
    def size(self) -> dict[str, int]:
        return {"N": self.N, "V": self.V}

    @property
    def bytes(self) -> int:
        return self.N * self.V * DTYPES[self.dtype].itemsize

    @property
    def traffic(self) -> int:
        """One read and one write of the supervised rows."""
        return 2 * self.bytes * self.M // self.N

    @property
    def eager_bytes(self) -> int:
        """Log-softmax, its gradient, and the logits' gradient, of all N tokens."""
        return 3 * self.bytes

    def inputs(self, upcast: torch.dtype | None = None, seed: int = 0) -> LogitInputs:
        random = torch.Generator(self.device).manual_seed(seed)
        dtype = DTYPES[self.dtype]
        values = torch.randn(self.N, self.V, generator=random, device=self.device).to(dtype).to(upcast or dtype)
        return LogitInputs(values.clone().requires_grad_(), self.labels(random), values)
