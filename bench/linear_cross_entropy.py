"""Linear cross-entropy, forward and backward, dx and dw: fastft, its peers, and the floor in the same run.

The floor is what nobody who calls the same GEMMs can beat: the three bare GEMMs of the M supervised rows
(z = x w^T, dx = dz w, dw = dz^T x) into buffers that exist already, plus one in-place pass over their (M, V) logits.

    python -m pytest bench/linear_cross_entropy.py -k "smollm2 and bf16 and ignored85" --providers fastft,eager
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.cases import IGNORE_INDEX, Case, Head, HeadInputs
from bench.contest import DEVICES, Op
from bench.peers import LINEAR_CROSS_ENTROPY, Loss
from bench.shapes import HEADS, SMOKE_HEADS, Extent, head_cases, of_extent


def cases(extent: Extent) -> list[Head]:
    return of_extent(
        extent, head_cases({device: SMOKE_HEADS if extent == "smoke" else HEADS[device] for device in DEVICES})
    )


def floor(inputs: HeadInputs) -> Callable[[], None]:
    """The bare GEMMs and one pass, every buffer allocated and touched beforehand."""
    x = inputs.x.detach()[inputs.y != IGNORE_INDEX]
    w = inputs.w.detach()
    z, dx, dw = (x.new_empty(shape).fill_(0) for shape in ((len(x), len(w)), x.shape, w.shape))

    def call() -> None:
        torch.mm(x, w.t(), out=z)
        z.mul_(0.5)
        torch.mm(z, w, out=dx)
        torch.mm(z.t(), x, out=dw)

    return call


def step(loss: Loss, inputs: HeadInputs) -> Callable[[], Tensor]:
    """Forward and backward of the head in one training step; the gradients are left in `inputs`."""

    def call() -> Tensor:
        value = loss(inputs.x, inputs.w, inputs.y)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return call


OP = Op(
    "linear_cross_entropy",
    LINEAR_CROSS_ENTROPY,
    cases,
    floor,
    step,
    too_slow={
        ("cpu", "gemma3", "torch-default"): "a call takes over 2 minutes on two cores",
        ("cpu", "gemma3", "trl"): "without Triton a call takes 15 to 20 s on two cores",
    },
)


@pytest.mark.filterwarnings("ignore")
def test_linear_cross_entropy(case: Case, measure: Callable[[Op, Case], None]) -> None:
    measure(OP, case)
