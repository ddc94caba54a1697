"""csrc/math/leap.h: two nodes that have the moments of many, and what takes a row from one step to another."""

import pytest
import torch
from torch import Tensor

from csrc.conftest import Library

POWERS = torch.arange(4, dtype=torch.float64, device="cpu")


def moments(weights: Tensor, nodes: Tensor) -> Tensor:
    """(n, 4) of weights and nodes (n, k)."""
    return (weights[..., None] * nodes[..., None] ** POWERS).sum(1)


def rule(math: Library, found: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """(n, 9) departures, whose logs are 7."""
    out = torch.full((len(found), 9), 7.0, dtype=torch.float64)
    math.nodes(found, first, last, out, len(found))
    assert (out[:, :3] == 7).all()
    return out


@pytest.mark.parametrize("k", [2, 3, 40])
def test_two_nodes_for_many(k: int, math: Library) -> None:
    g = torch.Generator().manual_seed(k)
    weights, nodes = torch.rand(500, k, generator=g, dtype=torch.float64), torch.rand(500, k, generator=g).double()
    nodes = 0.5 + nodes
    want, first, last = moments(weights, nodes), torch.full((500,), 0.5).double(), torch.full((500,), 1.5).double()
    made = rule(math, want, first, last)
    torch.testing.assert_close(moments(made[:, 3:5], made[:, 5:7]), want, rtol=1e-9, atol=0)
    assert (made[:, 3:5] >= 0).all()
    assert ((made[:, 5:7] >= 0.5) & (made[:, 5:7] <= 1.5)).all()
    assert (made[:, 7] == 0.5).all()
    assert (made[:, 8] == 0.5).all()


def test_one_node_and_none(math: Library) -> None:
    """All of the measure at one place, or nothing at all."""
    weights, nodes = torch.tensor([[2.0], [0.0]]).double(), torch.tensor([[0.3], [0.9]]).double()
    made = rule(
        math, moments(weights, nodes), torch.tensor([0.125, 0.25]).double(), torch.tensor([0.125, 0.25]).double()
    )
    assert made[:, 3:5].sum(1).tolist() == [2.0, 0.0]
    torch.testing.assert_close(made[0, 5:7], torch.tensor([0.3, 0.3]).double(), rtol=1e-5, atol=0)
    assert made[1, 5:7].tolist() == [0.25, 0.25]
    assert made[:, 7].tolist() == [0.0, 0.0]


def test_from_one_step_to_another(math: Library) -> None:
    """Weight decay comes into the weights, powers of beta are those of the steps between; from a step to itself: 1."""
    left, now = torch.rand(100, 9, dtype=torch.float64), torch.rand(100, 9, dtype=torch.float64)
    now[:3, :3] = left[:3, :3]
    leaps = torch.empty(100, 9)
    math.leaps_between(left, now, leaps, 100)
    powers = (now[:, :3] - left[:, :3]).exp()
    want = torch.cat([powers[:, :1], left[:, 3:5] * powers[:, :1], left[:, 5:], powers[:, 1:]], 1).float()
    torch.testing.assert_close(leaps, want, rtol=2e-7, atol=0)
    assert (leaps[:3, [0, 7, 8]] == 1).all()
