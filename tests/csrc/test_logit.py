"""csrc/math/logit.h: z = cap(scale x) and dz/dx."""

import pytest
import torch

from csrc.conftest import Library

X = torch.linspace(-60, 60, 20_001)


def transform(math: Library, scale: float, softcap: float) -> tuple[torch.Tensor, torch.Tensor]:
    z, slope = torch.empty_like(X), torch.empty_like(X)
    math.transforms(X, z, slope, len(X), scale, softcap)
    return z, slope


@pytest.mark.parametrize("scale", [1.0, 0.0625, -2.5, 0.0])
def test_without_cap(scale: float, math: Library) -> None:
    z, slope = transform(math, scale, 0.0)
    assert torch.equal(z, scale * X)
    assert (slope == scale).all()


@pytest.mark.parametrize("scale", [1.0, 0.0625, -2.5])
@pytest.mark.parametrize("softcap", [1.0, 5.0, 30.0, 1000.0])
def test_with_cap(scale: float, softcap: float, math: Library) -> None:
    """The slope is right to its last digits where it is small too, but for the rounding of scale x / softcap."""
    z, slope = transform(math, scale, softcap)
    u = scale * X.double() / softcap
    torch.testing.assert_close(z.double(), softcap * u.tanh(), rtol=5e-7, atol=0)
    expected = scale / u.cosh().square()
    bound = expected.abs() * (1e-6 + 5 * 2.0**-24 * u.abs()) + abs(scale) * 1e-37  # exp(-2 |u|) flushes to 0 in the end
    assert ((slope.double() - expected).abs() <= bound).all()
    assert (z.abs() <= softcap).all()
    assert (slope * scale >= 0).all()
