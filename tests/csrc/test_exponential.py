"""csrc/math/exponential.h: distance from the true exp and tanh, in units in the last place, and the special values."""

import pytest
import torch
from torch import Tensor

from csrc.conftest import Library

SMALLEST_NORMAL = 2.0**-126
WITHOUT_UNDERFLOW = -87.3


def floats_between(low: float, high: float, step: int) -> Tensor:
    """Each `step`-th float of either sign whose magnitude is in [low, high], and both ends."""
    ends = torch.tensor([low, high]).view(torch.int32)
    magnitudes = torch.cat([torch.arange(int(ends[0]), int(ends[1]), step, dtype=torch.int32), ends]).view(
        torch.float32
    )
    return torch.cat([-magnitudes, magnitudes])


def ulps(got: Tensor, truth: Tensor) -> Tensor:
    """Distance in units in the last place of the rounded truth, at least of the smallest normal number."""
    _, exponent = torch.frexp(truth.abs().clamp(SMALLEST_NORMAL))
    return (got.double() - truth).abs() / 2.0 ** (exponent.double() - 24)


def test_exponential(math: Library) -> None:
    x = torch.cat([-floats_between(2.0**-30, -WITHOUT_UNDERFLOW, 509).abs(), torch.linspace(-87, 0, 1_000_001)])
    assert ulps(math.map("exponentials", x), x.double().exp()).max() <= 2


def test_exponential_a_rounding_above_zero(math: Library) -> None:
    """`z - max` of a product may come out above 0 where the compiler fuses it."""
    x = torch.linspace(0, 1e-4, 1001)
    assert ulps(math.map("exponentials", x), x.double().exp()).max() <= 2


def test_exponential_below_the_normal_numbers(math: Library) -> None:
    """0, a subnormal, or anything between: off by no more than what the last float before them has."""
    x = torch.cat([torch.linspace(-110, WITHOUT_UNDERFLOW, 100_001), torch.tensor([-1e4, -3e38, -torch.inf])])
    got = math.map("exponentials", x)
    assert (got >= 0).all()
    assert ((got.double() - x.double().exp()).abs() <= 1.05 * SMALLEST_NORMAL).all()
    assert (got[x < -104] == 0).all()


def test_exponential_of_special_values(math: Library) -> None:
    assert math.map("exponentials", torch.tensor([0.0, -0.0, -torch.inf])).tolist() == [1, 1, 0]
    assert math.map("exponentials", torch.tensor([torch.nan, -torch.nan])).isnan().all()


def test_exponential_never_decreases_by_more_than_rounding(math: Library) -> None:
    y = math.map("exponentials", torch.linspace(-20, 0, 2_000_001)).double()
    assert (y.diff() >= -(2.0**-23) * y[1:]).all()
    assert (y <= 1).all()


def test_hyperbolic_tangent(math: Library) -> None:
    x = torch.cat([floats_between(2.0**-30, 20.0, 1009), torch.linspace(-10, 10, 1_000_001)])
    assert ulps(math.map("hyperbolic_tangents", x), x.double().tanh()).max() <= 2.5


def test_hyperbolic_tangent_is_odd_and_stays_within_one(math: Library) -> None:
    x = torch.cat([floats_between(2.0**-140, 3e38, 100_003), torch.tensor([torch.inf, 0.0])])
    y = math.map("hyperbolic_tangents", x)
    assert torch.equal(math.map("hyperbolic_tangents", -x), -y)
    assert (y.abs() <= 1).all()
    assert (y[x > 10] == 1).all()
    tiny = x.abs() < 2.0**-20
    torch.testing.assert_close(y[tiny], x[tiny], rtol=2e-7, atol=1e-38)


def test_hyperbolic_tangent_of_nan(math: Library) -> None:
    assert math.map("hyperbolic_tangents", torch.tensor([torch.nan])).isnan().all()


@pytest.mark.parametrize("step", [1, 3])
def test_neighbours_do_not_matter(step: int, math: Library) -> None:
    """A value alone, at a loop's end, or inside a vector: the same bits."""
    x = torch.linspace(-60, 0, 1003)
    whole = math.map("exponentials", x)
    for start in range(0, 64, step):
        assert torch.equal(math.map("exponentials", x[start : start + 17].contiguous()), whole[start : start + 17])
