"""A table trained twice, by rows and densely by torch, on the same Zipf-distributed ids."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastft.embedding.table import SparseEmbedding
from fastft.optim.row_optimizer import RowOptimizer

ROWS, WIDTH, TOKENS = 300, 16, 24


def zipf(steps: int, seed: int = 0, rows: int = ROWS) -> Iterator[Tensor]:
    """Ids (TOKENS,) of each step: the common ones at almost every step, rare ones after hundreds."""
    g = torch.Generator().manual_seed(seed)
    share = 1 / torch.arange(1, rows + 1, dtype=torch.float64)
    for _ in range(steps):
        yield torch.multinomial(share, TOKENS, replacement=True, generator=g)


def cosine(step: int, steps: int, peak: float = 1e-2, warmup: int = 20) -> float:
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6


class Twins:
    """The same table, `rows` under a RowOptimizer and `dense` under torch's; they get the same gradients."""

    def __init__(self, kind: type[RowOptimizer], torchs: Any, rows: int = ROWS, **options: Any) -> None:
        start = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
        self.embedding = SparseEmbedding(rows, WIDTH)
        self.embedding.weight.data.copy_(start)
        own = {n: options.pop(n) for n in ("engine", "backend", "semantics") if n in options}
        self.optimizer = kind(self.embedding.parameters(), **options, **own)
        self.dense = nn.Parameter(start.clone())
        self.torchs = torchs([self.dense], **options, foreach=False)
        self.noise = torch.Generator().manual_seed(2)

    @property
    def weight(self) -> nn.Parameter:
        return self.embedding.weight

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What forward reads, and what dense training has there."""
        return self.embedding(ids), self.dense.detach()[ids]

    def backward(self, ids: Tensor, size: float = 1e-2) -> None:
        self.embedding(ids).backward(torch.randn(*ids.shape, WIDTH, generator=self.noise) * size)

    def step(self, lr: float | None = None) -> None:
        for optimizer in (self.optimizer, self.torchs):
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] if lr is None else lr
        self.dense.grad = None if self.weight.grad is None else self.weight.grad.to_dense()
        self.optimizer.step()
        self.torchs.step()
        self.optimizer.zero_grad()

    def same_bits(self) -> None:
        """Table and state after a flush."""
        self.optimizer.flush()
        assert torch.equal(self.weight, self.dense)
        state, held = self.torchs.state[self.dense], self.optimizer.dense_state_dict()["state"][0]
        assert held["step"] == state.get("step", held["step"])  # torch's SGD counts none
        for name in self.optimizer.names:
            assert (name in held) == (state.get(name) is not None)
            if name in held:
                assert torch.equal(held[name], state[name])

    def run_bitwise(self, steps: int = 60, peak: float = 1e-2, size: float = 1e-2) -> None:
        """The same bits at every read, and at the end."""
        for i, ids in enumerate(zipf(steps)):
            assert torch.equal(*self.read(ids))
            self.backward(ids, size)
            self.step(cosine(i, steps, peak))
        self.same_bits()
