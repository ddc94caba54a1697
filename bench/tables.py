"""One case of training an embedding table: its batches, the table, and the bytes that the touched rows cost.

N positions, D width, V rows, U rows touched by a batch (mean); table (V, D), ids (N,), gradient of rows read (N, D).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bench.cases import DTYPES, Case

BATCHES = 32  # ids differ from step to step; later steps begin again with the first batch
TABLE_STD, GRADIENT_STD = 0.02, 1.0
CHOSEN_RANKS = (1, 10)  # of the two rows that alone learn under some providers: in every batch, some of them often


class Training(NamedTuple):
    """A table and its optimizer; no gradient yet."""

    lookup: Callable[[Tensor], Tensor]  # ids (N,) -> (N, D)
    optimizer: torch.optim.Optimizer
    table: Callable[[], Tensor]  # (V, D) as trained so far


Start = Callable[[Tensor, list[int]], Training]  # of a table, whose memory it takes, and the chosen rows


@cache
def ranked(V: int) -> Tensor:
    """(V,): the most frequent id first."""
    return torch.randperm(V, generator=torch.Generator().manual_seed(0))


@cache
def batches(N: int, V: int, among: int | None = None) -> Tensor:
    """(BATCHES, N) ids, Zipf-distributed with exponent 1, of the `among` most frequent rows, or of all."""
    random = torch.Generator().manual_seed(0)
    share = torch.arange(1, (among or V) + 1, dtype=torch.float64).reciprocal().cumsum(0)
    drawn = torch.rand(BATCHES, N, dtype=torch.float64, generator=random)
    return ranked(V)[torch.searchsorted(share / share[-1], drawn)]


@cache
def touched(N: int, V: int, among: int | None = None) -> int:
    """Rows that a batch touches, on average."""
    return round(sum(len(ids.unique()) for ids in batches(N, V, among)) / BATCHES)


def traffic(N: int, D: int, U: int, itemsize: int) -> int:
    """Bytes of one AdamW step of the touched rows: forward reads p, m and v of U rows (those that lag behind) and
    writes N; backward reads N and writes the gradient of U; the step reads g, p, m and v of U and writes p, m, v."""
    return (3 * U + N + N + U + 4 * U + 3 * U) * D * itemsize


@dataclass
class TableInputs:
    """What each provider starts from, and the batches, the same ones in the same order for all."""

    initial: Tensor  # (V, D)
    ids: Tensor  # (BATCHES, N)
    noise: Tensor  # (N + BATCHES, D), of which gradients are windows
    chosen: list[int]
    traffic: int
    trainings: list[Training] = field(default_factory=list)
    rows: Tensor | None = None  # (N, D), what the last lookup returned

    def begin(self, start: Start) -> Training:
        self.trainings.append(start(self.initial.clone(), self.chosen))
        return self.trainings[-1]

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Ids (N,) and the gradient of their rows (N, D) in a step."""
        k = number % BATCHES
        return self.ids[k], self.noise[k : k + self.ids.shape[1]]

    def reset(self) -> None:
        """Frees the last step's gradients; tables and their state stay."""
        self.rows = None
        for training in self.trainings:
            training.optimizer.zero_grad(set_to_none=True)

    @property
    def left(self) -> dict[str, Tensor]:
        if self.rows is None:
            raise RuntimeError("the provider left no rows")
        return {"rows": self.rows}


@dataclass(frozen=True)
class Table(Case):
    """One case of training an embedding table; `among`: ids are of so many rows only, the most frequent ones. After a
    `warm_up` with all batches no row is new to a timed step; after a shorter one some are, which get their state.
    """

    name: str
    N: int
    D: int
    V: int
    dtype: str = "fp32"
    device: str = "cpu"
    among: int | None = None
    warm_up: int = BATCHES
    ignored = 0.0

    @property
    def size(self) -> dict[str, int]:
        return {"N": self.N, "D": self.D, "V": self.V}

    @property
    def shape(self) -> dict[str, int]:
        return {**self.size, "U": touched(self.N, self.V, self.among)}

    @property
    def traffic(self) -> int:
        return traffic(self.N, self.D, self.shape["U"], DTYPES[self.dtype].itemsize)

    @property
    def eager_bytes(self) -> int:
        """The gradient of the table, rows read and their gradient."""
        return (self.V + 2 * self.N) * self.D * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return self.place

    def reduced(self) -> "Table":
        small = super().reduced()
        return replace(small, among=self.among and min(self.among, small.V))

    def inputs(self, upcast: torch.dtype | None = None, seed: int = 0) -> TableInputs:
        """A table as models initialise it, gradients of unit variance; always the same for a case."""
        random = torch.Generator(self.device).manual_seed(seed)
        dtype = DTYPES[self.dtype]

        def normal(rows: int, std: float) -> Tensor:
            values = torch.randn(rows, self.D, generator=random, device=self.device).mul_(std)
            return values.to(dtype).to(upcast or dtype)

        ids = batches(self.N, self.V, self.among).to(self.device)
        chosen = ranked(self.V)[list(CHOSEN_RANKS)].tolist()
        initial, noise = normal(self.V, TABLE_STD), normal(self.N + BATCHES, GRADIENT_STD)
        return TableInputs(initial, ids, noise, chosen, self.traffic)
