"""The contract of a `leap` kernel: two nodes with the moments of missed steps, for each step a row was left at."""

import math

import pytest
import torch

from fastft import dispatch
from fastft.optim.leap import Leaps

BACKENDS = ("cpu", "reference")
Numbers = tuple[float, float, float, float]  # shrink, and of the others lr alone is looked at


def steps(count: int) -> list[Numbers]:
    """Warm-up, then a cosine, decayed by 0.1."""
    lrs = [1e-3 * min(1, (k + 1) / 10) * (1 + math.cos(k / 50)) for k in range(count)]
    return [(1 - 0.1 * lr, math.nan, math.nan, lr) for lr in lrs]


def leaps_of(numbers: list[Numbers], betas: tuple[float, float], first: int) -> Leaps:
    leaps = Leaps(*betas, first)
    for step in numbers:
        leaps.append(step)
    return leaps


def moments(numbers: list[Numbers], betas: tuple[float, float], first: int, s: int) -> list[float]:
    """Sums over the steps after `s` of q z^k, k = 0 to 3, by the formula."""
    beta1, beta2 = betas
    found, product = [0.0] * 4, math.prod(shrink for shrink, *_ in numbers[s:])
    for j, (shrink, *_, lr) in enumerate(numbers[s:], 1):
        product /= shrink
        z = math.sqrt(1 - beta2 ** (first + s + j)) * beta2 ** (-j / 2)
        q = z * lr * beta1**j / (1 - beta1 ** (first + s + j)) * product
        found = [moment + q * z**k for k, moment in enumerate(found)]
    return found


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only one there is."""
    monkeypatch.setattr(dispatch, "BACKENDS", (request.param,))
    name: str = request.param
    return name


@pytest.mark.parametrize("first", [0, 7, 100_000])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.95, 0.99), (0.5, 0.999), (0.0, 0.9)])
@pytest.mark.parametrize("count", [1, 2, 3, 60, 64, 140])
def test_two_nodes_have_the_moments(count: int, betas: tuple[float, float], first: int, backend: str) -> None:
    numbers = steps(count)
    leaps = leaps_of(numbers, betas, first)
    last = torch.arange(count + 1, dtype=torch.int32, device="cpu")
    rows = leaps.rows(last, last.long()).double()
    for s, (product, w1, w2, n1, n2, half, z_1, beta1, beta2) in enumerate(rows.tolist()):
        k = count - s
        assert product == pytest.approx(math.prod(shrink for shrink, *_ in numbers[s:]), rel=1e-6)
        assert beta1 == pytest.approx(betas[0] ** k, rel=1e-5, abs=1e-30)
        assert beta2 == pytest.approx(betas[1] ** k, rel=1e-5)
        z = [
            math.sqrt(1 - betas[1] ** (first + s + j)) * betas[1] ** (-j / 2) for j in (1, max(1, min(k, leaps.reach)))
        ]
        assert z_1 == pytest.approx(z[0], rel=1e-6)
        assert half == pytest.approx((z[1] - z[0]) / 2, rel=1e-5, abs=1e-9)
        assert min(w1, w2) >= 0
        for power, moment in enumerate(moments(numbers, betas, first, s)):
            assert w1 * n1**power + w2 * n2**power == pytest.approx(moment, rel=1e-5, abs=1e-15)


def test_rows_are_those_asked_for(backend: str) -> None:
    """More of them than steps, fewer, none; strided ids."""
    leaps = leaps_of(steps(100), (0.9, 0.999), 0)
    g = torch.Generator("cpu").manual_seed(0)
    every = leaps.rows(torch.arange(101, dtype=torch.int32, device="cpu"), torch.arange(101, device="cpu"))
    last = torch.randint(101, (500,), generator=g, device="cpu", dtype=torch.int32)
    for k in (500, 101, 100, 20, 1, 0):
        ids = torch.randperm(500, generator=g, device="cpu")[:k]
        assert torch.equal(leaps.rows(last, ids), every[last[ids].long()])
    ids = torch.arange(500, device="cpu")[::7]
    assert torch.equal(leaps.rows(last, ids), every[last[ids].long()])
    assert every.dtype == torch.float32


def test_backends_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for backend in BACKENDS:
        monkeypatch.setattr(dispatch, "BACKENDS", (backend,))
        found.append(leaps_of(steps(300), (0.9, 0.999), 3))
    torch.testing.assert_close(found[0].moments, found[1].moments, rtol=1e-12, atol=0)
    assert found[0].count == found[1].count == 300


@pytest.mark.parametrize("betas", [(0.999, 0.9), (0.9, 0.0), (0.9, 0.81)])
def test_no_leap_where_its_sum_has_no_end(betas: tuple[float, float]) -> None:
    assert not leaps_of(steps(3), betas, 0).possible


def test_no_leap_over_a_decay_of_everything(backend: str) -> None:
    leaps = leaps_of(steps(3), (0.9, 0.999), 0)
    leaps.append((0.0, 0.0, 0.0, 1e-3))
    assert not leaps.possible
    leaps.append(steps(1)[0])
    assert not leaps.possible


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rows_on_a_gpu() -> None:
    leaps = leaps_of(steps(100), (0.9, 0.999), 0)
    last = torch.arange(101, dtype=torch.int32, device="cuda")
    want = leaps.rows(last.cpu(), last.cpu().long())
    torch.testing.assert_close(leaps.rows(last, last.long()).cpu(), want, rtol=1e-6, atol=0)
