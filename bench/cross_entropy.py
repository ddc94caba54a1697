"""Cross-entropy of given logits, forward and backward, dz: fastft, its peers, and the floor in the same run.

The floor is a copy of the M supervised rows between two buffers that exist already: each of their bytes is read once
and written once, and a row's GB/s are those bytes over its time, so that its share of the floor is its share of the
device's copy bandwidth. It counts nothing for ignored rows. A loss that leaves its logits alone, as fastft and eager
do, also writes zeros into those rows of its gradient: with r = M / N it moves (1 + r) / 2r times the floor's bytes,
1.5, 3.8 and 10.5 times at 50, 85 and 95 % ignored, into memory that the allocator may have to fetch first. A loss in
place (Liger) writes those zeros too, and reads and writes one buffer; on a CPU that is faster than a copy, which also
fetches every line it writes.

Each call starts from fresh logits, restored off the clock, because a loss in place spends them. It ends with the
gradient in the hands of whatever made the logits: `torch.autograd.grad`, not `z.grad`, which may take a copy.

    python -m pytest bench/cross_entropy.py -k "smollm2 and bf16 and ignored85" --providers fastft,eager
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.cases import IGNORE_INDEX, Case, LogitInputs, Logits
from bench.contest import DEVICES, Op
from bench.peers import CROSS_ENTROPY, Loss
from bench.shapes import LOGITS, SMOKE_LOGITS, Extent, logit_cases, of_extent


def cases(extent: Extent) -> list[Logits]:
    room = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    logits = {device: SMOKE_LOGITS if extent == "smoke" else LOGITS[device] for device in DEVICES}
    return of_extent(extent, logit_cases(logits, room))


def floor(inputs: LogitInputs) -> Callable[[], Tensor]:
    """As many rows as are supervised, read once and written once; the buffer is touched beforehand."""
    read = inputs.values[: int((inputs.y != IGNORE_INDEX).sum())]
    written = torch.empty_like(read).fill_(0)
    return lambda: written.copy_(read)


def step(loss: Loss, inputs: LogitInputs) -> Callable[[], Tensor]:
    """Forward and backward of the loss in one training step; the gradient is left in `inputs`."""

    def call() -> Tensor:
        value = loss(inputs.z, inputs.y)
        (inputs.dz,) = torch.autograd.grad(value, inputs.z)
        return value.detach()

    return call


OP = Op(
    "cross_entropy",
    CROSS_ENTROPY,
    cases,
    floor,
    step,
    too_slow={
        ("cpu", name, "compacted"): "seconds a call, to add the gathered rows' gradient into zeros"
        for name in LOGITS["cpu"]
    },
)


@pytest.mark.filterwarnings("ignore")
def test_cross_entropy(case: Case, measure: Callable[[Op, Case], None]) -> None:
    measure(OP, case)
