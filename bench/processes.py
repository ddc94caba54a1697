"""A head's step shared by P processes, each on one thread: the same batch in P parts, gradients of w summed by gloo.

Everyone in the race runs on a process's own rows, its loss weighed with its share of the supervised tokens, then sums
dw and the loss over the processes; the floor is the bare GEMMs of those rows and sums nothing. A lap begins for all
processes at once, and a row is what the first of them saw. Its memory is that process's own.

On a machine of two cores this shows what is lost to summing dw, and to two processes that share one memory: nothing of
a network, and nothing beyond P = 2. Other processes' work is not told apart from the other parts' (`other_cores` is
unknown).
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from bench import linear_cross_entropy
from bench.cases import DTYPES, IGNORE_INDEX, Head, HeadInputs
from bench.contest import Contest, Op
from bench.peers import LINEAR_CROSS_ENTROPY, Loss
from bench.rows import SCALING, Record, device_name
from bench.timing import Race

ROUNDS = 3  # at most
STALLED = timedelta(seconds=120)  # that one process waits for the others
PROVIDERS = ("eager", "fastft")


@dataclass(frozen=True)
class PartInputs(HeadInputs):
    """What one process has; `share` of the supervised tokens is here."""

    share: float

    def reset(self) -> None:
        super().reset()
        distributed.barrier()


@dataclass(frozen=True)
class Part(Head):
    """One process's rows of a head's batch; N and M are those of the whole."""

    P: int = 1
    rank: int = 0

    @property
    def size(self) -> dict[str, int]:
        return {**super().size, "P": self.P}

    @property
    def uncounted_bytes(self) -> int:
        return (self.N // self.P + self.V) * self.D * DTYPES[self.dtype].itemsize

    def inputs(self, upcast: torch.dtype | None = None, seed: int = 0) -> PartInputs:
        whole = super().inputs(upcast, seed)
        x, y = whole.x.detach().chunk(self.P)[self.rank], whole.y.chunk(self.P)[self.rank]
        return PartInputs(x.clone().requires_grad_(), whole.w, y, int((y != IGNORE_INDEX).sum()) / self.M)


class InStep(Race):
    """Every process takes the same turns: how many there are does not depend on what one of them saw."""

    def rounds(self, name: str) -> int:
        return min(self.most, ROUNDS)


def step(loss: Loss, inputs: PartInputs) -> Callable[[], Tensor]:
    """Forward and backward of this process's rows, then the sums over all."""

    def call() -> Tensor:
        value = loss(inputs.x, inputs.w, inputs.y) * inputs.share
        value.backward()  # type: ignore[no-untyped-call]
        total: Tensor = value.detach().clone()
        distributed.all_reduce(total)
        distributed.all_reduce(inputs.w.grad)
        return total

    return call


OP = Op(SCALING, LINEAR_CROSS_ENTROPY, lambda extent: [], linear_cross_entropy.floor, step, race=InStep)


def measured(case: Part, most: int) -> tuple[list[Record], dict[str, str], list[str]]:
    """Records of the first process, reasons of the absent, and the names of those who are there and raised."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(case.P, get_context("spawn")) as pool:
        work = partial(serve, case, Path(folder, "rendezvous"), most)
        (records, absent, broken), *_ = pool.map(work, range(case.P))
    return [replace(record, device=device_name(case.device)) for record in records], absent, broken


def serve(case: Part, rendezvous: Path, most: int, rank: int) -> tuple[list[Record], dict[str, str], list[str]]:
    torch.set_num_threads(1)
    options: dict[str, Any] = {"rank": rank, "world_size": case.P, "timeout": STALLED}
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", **options)
    try:
        contest = Contest(OP, replace(case, rank=rank), PROVIDERS, cap=0.0, most=most)
        race = contest.race
        for number in range(1, race.rounds("floor") + 1):
            for name in race.order(number):
                race.turn(name, number)
        race.laps = {
            name: {r: lap._replace(others=None) for r, lap in laps.items()} for name, laps in race.laps.items()
        }
        return contest.records(), contest.absent, contest.broken
    finally:
        distributed.destroy_process_group()
