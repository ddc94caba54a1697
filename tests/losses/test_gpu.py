"""What only a GPU shows of the head's schedule: no synchronisation, CUDA graphs, padded rows, memory.

Parity, options and bad input run there too, by the backends' fixture in the other files.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tolerance import no_worse
from torch import Tensor

from fastft.losses import linear_cross_entropy
from losses import eager
from losses.cases import Problem, problem
from losses.test_linear_cross_entropy import OUTPUTS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BUDGETS = [None, 1 << 20]  # one chunk, and several
BACKENDS = ["triton", "cuda"]


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device("cuda"):
        yield


def capacity(p: Problem) -> Tensor:
    """Positions of the supervised tokens, -1s up to N."""
    valid = (p.y != -100).nonzero()[:, 0]
    return torch.cat([valid, valid.new_full((len(p.y) - len(valid),), -1)])


def gradients(p: Problem, **options: Any) -> list[Tensor]:
    x, w = (t.detach().requires_grad_() for t in (p.x, p.w))
    loss = linear_cross_entropy(x, w, p.y, **options)
    return [loss.detach(), *torch.autograd.grad(loss, [x, w])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_nothing_waits_for_the_device(budget: int | None, backend: str) -> None:
    p = problem(1000, 64, 5003, torch.bfloat16, 0.6)
    options = {"valid": capacity(p), "memory_budget": budget, "backend": backend}
    expected = gradients(p, **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = gradients(p, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_cuda_graph(budget: int | None, backend: str) -> None:
    """One graph for any number of supervised tokens, those of a batch where all are and where none is among them."""
    p = problem(1000, 64, 5003, torch.bfloat16, 0.6)
    valid = capacity(p)
    options = {"memory_budget": budget, "backend": backend}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients(p, valid=valid, **options)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = gradients(p, valid=valid, **options)
    for share in (0.0, 0.9, 1.0):
        other = problem(1000, 64, 5003, torch.bfloat16, share, seed=1)
        for static, now in zip((p.x, p.w, p.y, valid), (other.x, other.w, other.y, capacity(other)), strict=True):
            static.copy_(now)
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(got, gradients(other, **options), strict=True):
            torch.testing.assert_close(a, b, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_odd_vocabulary(budget: int | None, backend: str, dtype: torch.dtype) -> None:
    """Padded rows of logits; with several chunks dw is summed in fp32."""
    p = problem(700, 48, 50257, dtype, 0.5)
    truth = eager.evaluate(eager.linear_cross_entropy, [p.x, p.w], p.y, {}, dtype=torch.float64)
    torchs = eager.evaluate(eager.linear_cross_entropy, [p.x, p.w], p.y, {})
    got = gradients(p, memory_budget=budget, backend=backend)
    for name, g, t, f in zip(OUTPUTS, got, torchs, truth, strict=False):
        no_worse(name, g, t, f, dtype, roundings=4 if dtype != torch.float32 else 12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_is_the_budget(backend: str) -> None:
    """Beyond the gradients, whatever N is."""
    budget = 64 << 20
    p = problem(8192, 256, 32000, torch.bfloat16)
    gradients(p, memory_budget=budget, backend=backend)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    made = gradients(p, memory_budget=budget, backend=backend)
    held = sum(t.nbytes for t in made)
    sums = 2 * p.w.numel() * 4  # dw in fp32, and its product where torch cannot add to it
    assert torch.cuda.max_memory_allocated() - before <= budget + held + sums + (16 << 20)
