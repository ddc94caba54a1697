"""csrc/math/row.h: one row's loss and the gradient at its target, where cancellation would hurt."""

import pytest
import torch
from torch import Tensor

from csrc.conftest import Library


def split(z: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: the other classes' (max, sum, moment, dot) in fp32, the target's logit, the row's lse."""
    others = torch.cat([z[:, :target], z[:, target + 1 :]], 1).double()
    d = others - others.amax(1, keepdim=True)
    e = d.exp()
    sums = torch.stack([others.amax(1), e.sum(1), torch.where(e > 0, e * d, 0).sum(1), others.sum(1)], 1).float()
    return sums, z[:, target].contiguous(), z.double().logsumexp(1).float()


@pytest.mark.parametrize("target", [0, 17, 49])
def test_nll_to_relative_precision(target: int, math: Library) -> None:
    """From a wrong prediction by 300 to a certain one whose nll is 1e-30."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2001, 50, generator=g)
    z[:, target] = torch.linspace(-300, 69, 2001)
    sums, z_target, lse = split(z, target)
    others = torch.cat([z[:, :target], z[:, target + 1 :]], 1).double()
    expected = (others.logsumexp(1) - z_target.double()).exp().log1p()
    overflow = expected.isinf()
    expected[overflow] = (others.logsumexp(1) - z_target.double())[overflow]
    got = math.map("likelihoods", sums, z_target, lse)
    gap = (sums[:, 0] - z_target).double().abs()  # a difference that is rounded, and then exponentiated
    assert ((got.double() - expected).abs() <= expected * (1e-6 + gap * 2.0**-24)).all()
    assert (got > 0).all()


def test_nll_at_the_edges(math: Library) -> None:
    inf = torch.inf
    nothing_else = torch.tensor([[-inf, 0.0, 0.0, 0.0]])
    assert math.map("likelihoods", nothing_else, torch.tensor([3.0]), torch.tensor([3.0])).item() == 0
    masked_target = torch.tensor([[0.0, 2.0, 0.0, 0.0]])
    assert math.map("likelihoods", masked_target, torch.tensor([-inf]), torch.tensor([0.7])).item() == inf
    nan = torch.tensor([[0.0, torch.nan, 0.0, 0.0]])
    assert math.map("likelihoods", nan, torch.tensor([1.0]), torch.tensor([torch.nan])).isnan().all()


def test_lse_weight_and_target_gradient(math: Library) -> None:
    """dz_y = lse_weight p_y - smooth q_y - label, with 1 - p_y given apart."""
    g = torch.Generator().manual_seed(0)
    c = torch.randn(1000, 3, generator=g)
    q, p = torch.rand(1000, generator=g), torch.rand(1000, generator=g)
    lse = torch.randn(1000, generator=g) * 10
    label, smooth, lse_square = c.double().unbind(1)
    weight = label + smooth + 2 * lse_square * lse.double()
    torch.testing.assert_close(math.map("lse_weights", c, lse).double(), weight, rtol=1e-6, atol=1e-5)
    got = math.map("target_gradients", c, q, lse, p, (1 - p.double()).float())
    torch.testing.assert_close(got.double(), weight * p - smooth * q - label, rtol=1e-6, atol=1e-5)


def test_target_gradient_of_a_certain_prediction(math: Library) -> None:
    """label (p_y - 1) keeps the digits of 1 - p_y, here down to 1e-30."""
    rest = torch.logspace(-30, -1, 100)
    c = torch.tensor([[1.0, 0.0, 0.0]]).repeat(100, 1)
    zero, one = torch.zeros(100), torch.ones(100)
    got = math.map("target_gradients", c, zero, zero, one - rest, rest)
    torch.testing.assert_close(got, -rest, rtol=1e-6, atol=0)
