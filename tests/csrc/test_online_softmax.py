"""csrc/math/online_softmax.h: the laws of the monoid, and that it is the softmax sum."""

import itertools

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from csrc.conftest import Library

MAX, SUM, MOMENT, DOT = range(4)
LOGITS = st.lists(st.one_of(st.floats(-100, 100, width=32), st.just(-torch.inf)), max_size=24)
ONE_LIBRARY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def combine(math: Library, a: Tensor, b: Tensor) -> Tensor:
    assert a.shape == b.shape
    out = torch.empty_like(a)
    math.combinations(a.contiguous(), b.contiguous(), out, len(a))
    return out


def identity(math: Library, n: int = 1) -> Tensor:
    out = torch.empty(n, 4)
    math.identities(out, n)
    return out


def of(z: Tensor, q: Tensor | None = None) -> Tensor:
    """One logit each: what a row of one class knows."""
    q = torch.ones_like(z) if q is None else q
    finite = z.isfinite()
    return torch.stack([z, finite.float(), torch.zeros_like(z), q * z], 1)


def direct(z: Tensor) -> Tensor:
    """The sum over a set of logits by its definition, in fp64."""
    z = z.double()
    if not z.isfinite().any():
        return torch.tensor([-torch.inf, 0, 0, z.sum() if len(z) else 0.0]).double()
    d = z - z.max()
    e = d.exp()
    return torch.stack([z.max(), e.sum(), torch.where(e > 0, e * d, 0).sum(), z.sum()])


def fold(math: Library, sums: Tensor) -> Tensor:
    total = identity(math)
    for i in range(len(sums)):
        total = combine(math, total, sums[i : i + 1])
    return total


def random_sums(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    top = torch.randn(n, generator=g) * 20
    total = 1 + torch.rand(n, generator=g) * 1000
    return torch.stack([top, total, -torch.rand(n, generator=g) * total, torch.randn(n, generator=g)], 1)


def test_identity(math: Library) -> None:
    sums = random_sums(1000)
    empty = identity(math, 1000)
    assert torch.equal(combine(math, sums, empty), sums)
    assert torch.equal(combine(math, empty, sums), sums)
    assert torch.equal(combine(math, empty, empty), empty)


def test_commutative(math: Library) -> None:
    a, b = random_sums(1000).chunk(2)
    b[:50, MAX] = a[:50, MAX]
    torch.testing.assert_close(combine(math, a, b), combine(math, b, a), rtol=3e-7, atol=0)


def test_associative(math: Library) -> None:
    a, b, c = random_sums(999).chunk(3)
    left = combine(math, combine(math, a, b), c)
    right = combine(math, a, combine(math, b, c))
    assert torch.equal(left[:, MAX], right[:, MAX])
    torch.testing.assert_close(left[:, SUM], right[:, SUM], rtol=2e-6, atol=0)
    torch.testing.assert_close(left[:, MOMENT], right[:, MOMENT], rtol=2e-5, atol=1e-3)
    torch.testing.assert_close(left[:, DOT], right[:, DOT], rtol=1e-5, atol=1e-6)


@ONE_LIBRARY
@given(z=LOGITS, cuts=st.lists(st.integers(0, 24), max_size=4))
def test_any_grouping_is_the_softmax_sum(math: Library, z: list[float], cuts: list[int]) -> None:
    """Blocks of any size, empty ones and wholly masked ones among them, in any nesting."""
    logits = torch.tensor(z, dtype=torch.float32)
    edges = [0, *sorted(min(cut, len(z)) for cut in cuts), len(z)]
    groups = [logits[a:b] for a, b in itertools.pairwise(edges)]
    got = fold(math, torch.cat([fold(math, of(group)) for group in groups]))[0].double()
    expected = direct(logits)
    assert got[MAX] == expected[MAX]
    torch.testing.assert_close(got[SUM], expected[SUM], rtol=5e-6, atol=0)
    torch.testing.assert_close(got[MOMENT], expected[MOMENT], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[DOT], expected[DOT], rtol=1e-4, atol=1e-3)


@ONE_LIBRARY
@given(z=LOGITS.filter(lambda z: any(x > -torch.inf for x in z)))
def test_lse_and_entropy(math: Library, z: list[float]) -> None:
    logits = torch.tensor(z, dtype=torch.float32)
    total = fold(math, of(logits))
    p = logits.double().softmax(0)
    lse, entropy = math.map("lses", total)[0], math.map("entropies", total)[0]
    torch.testing.assert_close(lse.double(), logits.double().logsumexp(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropy.double(), torch.special.entr(p).sum(), rtol=2e-5, atol=2e-5)


def test_masked_logits_contribute_nothing(math: Library) -> None:
    sums = random_sums(100)
    masked = of(torch.full((100,), -torch.inf), torch.zeros(100))
    masked[:, DOT] = 0  # 0 * -inf: q is 0 where the vocabulary is masked
    assert torch.equal(combine(math, sums, masked), sums)
    assert torch.equal(combine(math, masked, sums), sums)
    both = combine(math, masked, masked)
    assert (both[:, MAX] == -torch.inf).all()
    assert (both[:, SUM] == 0).all()


def test_nan_stays_visible(math: Library) -> None:
    """Of either operand, whichever has the larger maximum, also where the other is empty or all NaN."""
    for top in (-torch.inf, -50.0, 0.0, 50.0):
        dirty = torch.tensor([[top, torch.nan, torch.nan, torch.nan]])
        for clean in (torch.tensor([[1.0, 2.0, -0.5, 3.0]]), identity(math), dirty):
            assert combine(math, clean, dirty)[0, SUM].isnan()
            assert combine(math, dirty, clean)[0, SUM].isnan()


def test_far_apart_maxima_do_not_overflow(math: Library) -> None:
    a, b = torch.tensor([[3e38, 1.0, 0, 0]]), torch.tensor([[-3e38, 1.0, 0, 0]])
    for total in (combine(math, a, b), combine(math, b, a)):
        assert total[0, :3].tolist() == [a[0, 0].item(), 1, 0]
