"""csrc/math/adamw.h: one element's steps, and the leap over steps without a gradient, against fp64."""

import pytest
import torch
from torch import Tensor

from csrc.conftest import Library
from fastft.optim.adamw import Rule
from fastft.optim.leap import Leaps

BETAS = (0.9, 0.999)


def numbers(steps: int, decay: float = 0.1) -> list[tuple[float, ...]]:
    """Of each step: learning rate 1e-2 halved every 20 steps."""
    made = []
    for t in range(1, steps + 1):
        lr = 1e-2 * 0.5 ** (t / 20)
        made.append((1 - lr * decay, lr / (1 - BETAS[0] ** t), (1 - BETAS[1] ** t) ** 0.5, lr))
    return made


def constants(eps: float) -> Tensor:
    return torch.tensor([1 - BETAS[0], BETAS[1], 1 - BETAS[1], eps])


def truth(g: Tensor, steps: list[tuple[float, ...]], eps: float) -> list[Tensor]:
    """p from 1, m and v after a step with g and the others with 0."""
    rule = Rule(*BETAS, eps, False, False)
    p, m, v = torch.ones_like(g), torch.zeros_like(g), torch.zeros_like(g)
    for i, step in enumerate(steps):
        rule.step(p, [m, v], g if i == 0 else torch.zeros_like(g), step)
    return [p, m, v]


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("idle", [0, 1, 40])
def test_steps(idle: int, eps: float, math: Library) -> None:
    g = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-2
    steps = numbers(idle + 1)
    p, m, v = torch.ones(1000), torch.zeros(1000), torch.zeros(1000)
    math.adamw_steps(torch.tensor(steps), constants(eps), g, p, m, v, idle, 1000)
    for got, expected in zip((p, m, v), truth(g.double(), steps, eps), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-6 * (idle + 1), atol=0)


@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-3])
@pytest.mark.parametrize("idle", [0, 1, 2, 40, 400])
def test_leap(idle: int, eps: float, math: Library) -> None:
    """Where it says that it is close it is within 1e-5 of what the element moves, from g far above eps to far below."""
    g = torch.logspace(-12, 0, 1000) * torch.tensor([1.0, -1.0]).repeat(500)
    g[500] = 0
    steps = numbers(idle + 1)
    leaps = Leaps(*BETAS, first=0)
    for step in steps:
        leaps.append(step)
    row = leaps.rows(torch.tensor([1], dtype=torch.int32), torch.tensor([0]))
    before, expected = truth(g.double(), steps[:1], eps), truth(g.double(), steps, eps)
    p, m, v = (t.float() for t in before)
    close = torch.empty(1000)
    math.adamw_leaps(row, constants(eps), p, m, v, close, 1000)
    torch.testing.assert_close(m.double(), expected[1], rtol=1e-5, atol=1e-38)
    torch.testing.assert_close(v.double(), expected[2], rtol=1e-4, atol=1e-38)
    there = close.bool() & (before[2] > 1e-36)  # below, v has lost its digits in fp32
    assert there[g.abs() > 100 * eps].all()
    moved = (expected[0] - before[0]).abs()
    assert ((p - expected[0]).abs() <= 1e-5 * moved + 2e-7)[there].all()
    assert p.isfinite().all()
