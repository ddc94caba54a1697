"""csrc/math/half.h against torch's conversions, bit for bit."""

import pytest
import torch
from torch import Tensor

from csrc.conftest import Library

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def every_half() -> Tensor:
    return torch.arange(-(2**15), 2**15).to(torch.int16)


def floats_around(dtype: torch.dtype) -> Tensor:
    """Each half, each midpoint between neighbours, and the floats next to them; and floats of every exponent."""
    halves = every_half().view(dtype).float()
    midpoints = (halves.double() + every_half().add(1).view(dtype).double()) / 2
    exact = torch.cat([halves, midpoints.float()])
    bits = exact.view(torch.int32)
    g = torch.Generator().manual_seed(0)
    mantissas = torch.randint(0, 2**23, (512, 2000), generator=g, dtype=torch.int32)
    exponents = torch.arange(-256, 256, dtype=torch.int32)[:, None] * 2**23
    return torch.cat([bits, bits - 1, bits + 1, (exponents + mantissas).reshape(-1)]).view(torch.float32)


@pytest.mark.parametrize("half", HALVES)
def test_to_float_is_exact_for_every_half(half: str, math: Library) -> None:
    bits = every_half()
    got = math.map(f"from_{half}", bits)
    expected = bits.view(HALVES[half]).float()
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got[~nan].view(torch.int32), expected[~nan].view(torch.int32))


@pytest.mark.parametrize("half", HALVES)
def test_from_float_rounds_to_nearest_even(half: str, math: Library) -> None:
    x = floats_around(HALVES[half])
    got = math.map(f"to_{half}", x, dtype=torch.int16)
    expected = x.to(HALVES[half])
    nan = x.isnan()
    assert nan.any()
    assert got.view(HALVES[half])[nan].isnan().all()
    wrong = ~nan & (got != expected.view(torch.int16))
    assert not wrong.any(), f"{x[wrong][0].item()!r} becomes {got.view(HALVES[half])[wrong][0].item()!r}"


@pytest.mark.parametrize("half", HALVES)
def test_there_and_back(half: str, math: Library) -> None:
    bits = every_half()
    back = math.map(f"to_{half}", math.map(f"from_{half}", bits), dtype=torch.int16)
    nan = bits.view(HALVES[half]).isnan()
    assert torch.equal(back[~nan], bits[~nan])
    assert back.view(HALVES[half])[nan].isnan().all()
