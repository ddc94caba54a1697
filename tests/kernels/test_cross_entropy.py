"""The contract of a `cross_entropy` kernel: backends against the reference in fp64, the reference against autograd."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from tolerance import no_worse
from torch import Tensor

from fastft import dispatch
from fastft.kernels import reference
from fastft.kernels.reference import cross_entropy as truth_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRANSFORMS = [(1.0, 0.0), (0.5, 0.0), (1.0, 5.0), (-2.0, 3.0)]  # scale, softcap; 0 for none
STATS = ("nll", "lse", "q.z", "entropy", "correct")
SAME_BITS = ("cpu", "reference")  # wherever a row stands; on a GPU its 16-byte boundaries set the order of its sums


@pytest.fixture
def kernel(backend: str) -> ModuleType:
    module, why = dispatch.load("cross_entropy", backend)
    assert module is not None, why
    return module


class Rows:
    """M rows of logits, targets of which each third is skipped, and coefficients of every sign and size."""

    def __init__(
        self, m: int, v: int, dtype: torch.dtype = torch.float32, *, with_q: bool = False, seed: int = 0
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        device = torch.get_default_device()
        self.z = (torch.randn(m, v, generator=g, device="cpu") * 3).to(device, dtype)
        self.target = torch.randint(v, (m,), generator=g, device="cpu").to(device)
        self.target[1::3] = -1
        self.coefficients = torch.randn(m, 3, generator=g, device="cpu").to(device)
        self.coefficients[: m // 2, 1:] = 0  # plain rows: the label alone
        q = torch.rand(v, generator=g, device="cpu").to(device)
        self.q = q / q.sum() if with_q else None

    def run(
        self, kernel: ModuleType, z: Tensor, scale: float = 1.0, softcap: float = 0.0, grad: Tensor | None = None
    ) -> Tensor:
        wide = torch.promote_types(z.dtype, torch.float32)
        q = None if self.q is None else self.q.to(wide)
        stats = kernel.cross_entropy(z, self.target, self.coefficients.to(wide), q, scale, softcap, grad)
        assert stats.shape == (5, len(z))
        assert stats.dtype == wide
        return stats


def assert_alike(what: str, got: Tensor, expected: Tensor, backend: str) -> None:
    """Bit for bit where the backend promises it, elsewhere as two orders of the same sums are."""
    if backend in SAME_BITS:
        assert torch.equal(got, expected), what
    else:
        no_worse(what, got, expected, expected, got.dtype, roundings=6)


@pytest.mark.parametrize(("scale", "softcap"), TRANSFORMS)
@pytest.mark.parametrize("with_q", [False, True])
def test_reference_is_the_gradient_of_its_loss(scale: float, softcap: float, with_q: bool) -> None:
    """In fp64: statistics by their formulas, and the gradient that autograd finds for them."""
    rows = Rows(9, 11, torch.float64, with_q=with_q)
    leaf = rows.z.clone().requires_grad_()
    z = softcap * torch.tanh(scale * leaf / softcap) if softcap else scale * leaf
    lse = z.exp().sum(1).log()
    p = z.exp() / z.exp().sum(1, keepdim=True)
    q = torch.full((11,), 1 / 11).double() if rows.q is None else rows.q.double()
    keep = rows.target >= 0
    nll = -p.gather(1, rows.target.clamp(0)[:, None])[:, 0].log()
    expected = torch.stack([nll, lse, z @ q, -(p * p.log()).sum(1), (z.argmax(1) == rows.target).double()])
    label, smooth, lse_square = rows.coefficients.double().unbind(1)
    loss = label * nll + smooth * (lse - z @ q) + lse_square * lse.square()
    loss[keep].sum().backward()
    grad = torch.empty_like(rows.z)
    stats = rows.run(truth_kernel, rows.z, scale, softcap, grad)
    torch.testing.assert_close(stats, torch.where(keep, expected, 0).detach())
    torch.testing.assert_close(grad, leaf.grad)


@pytest.mark.parametrize("vocab", [1, 2, 7, 64, 2047, 2048, 2049, 4100, 50257])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_q", [False, True])
def test_against_the_reference_in_fp64(
    vocab: int, dtype: torch.dtype, with_q: bool, kernel: ModuleType, takes: Callable[..., None], backend: str
) -> None:
    takes(dtype)
    rows = Rows(6, vocab, dtype, with_q=with_q)
    # Triton compiles each transform again, in a second: all of them for rows of one block and of several.
    for scale, softcap in TRANSFORMS if backend != "triton" or vocab in (7, 4100) else TRANSFORMS[-1:]:
        grads = [torch.full_like(rows.z, torch.nan, dtype=d) for d in (dtype, dtype, torch.float64)]
        got, torchs, truth = (
            rows.run(k, z, scale, softcap, grad)
            for k, z, grad in zip(
                (kernel, truth_kernel, truth_kernel), (rows.z, rows.z, rows.z.double()), grads, strict=True
            )
        )
        for name, g, t, f in zip(STATS, got, torchs, truth, strict=True):
            size = float(truth[1].abs().max()) if name != "correct" else 0.0  # q.z and entropy are sums that cancel
            no_worse(f"{name}, scale {scale}, softcap {softcap}", g, t, f, torch.float32, scale=size)
        size = 4.0 if vocab == 1 else 0.0
        no_worse(f"gradient, scale {scale}, softcap {softcap}", *grads, dtype, scale=size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [7, 3001])
def test_in_place(dtype: torch.dtype, vocab: int, kernel: ModuleType, takes: Callable[..., None], backend: str) -> None:
    """The gradient in the logits' own memory is the gradient beside them, and so are the statistics."""
    takes(dtype)
    rows = Rows(9, vocab, dtype, with_q=True)
    z, grad = rows.z.clone(), torch.full_like(rows.z, torch.nan)
    beside = rows.run(kernel, z, 0.5, 4.0, grad)
    assert torch.equal(z, rows.z), "the logits were written to"
    inside = rows.run(kernel, z, 0.5, 4.0, z)
    assert torch.equal(z, grad)
    assert torch.equal(inside, beside)
    assert_alike("statistics without a gradient", rows.run(kernel, rows.z, 0.5, 4.0), beside, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_rows_below_minus_one_is_left_alone(
    dtype: torch.dtype, kernel: ModuleType, takes: Callable[..., None], backend: str
) -> None:
    if backend != "cpu":
        pytest.skip(f"{backend}: writes zeros, as for -1")
    takes(dtype)
    rows = Rows(9, 33, dtype)
    grad, left = torch.full_like(rows.z, torch.nan), torch.full_like(rows.z, 7.0)
    stats, skipped = rows.run(kernel, rows.z, grad=grad), rows.target < 0
    rows.target[skipped] = -2
    assert torch.equal(rows.run(kernel, rows.z, grad=left), stats)
    assert skipped.any()
    assert (left[skipped] == 7).all()
    assert torch.equal(left[~skipped], grad[~skipped])


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_skipped_rows_are_not_read_and_get_zeros(junk: float, kernel: ModuleType) -> None:
    rows = Rows(9, 33)
    skipped = rows.target < 0
    rows.z[skipped] = junk
    rows.coefficients[skipped] = torch.nan
    grad = torch.full_like(rows.z, torch.nan)
    stats = rows.run(kernel, rows.z, grad=grad)
    assert (grad[skipped] == 0).all()
    assert (stats[:, skipped] == 0).all()
    assert stats.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [7, 33, 2051])
def test_strides(dtype: torch.dtype, vocab: int, kernel: ModuleType, takes: Callable[..., None], backend: str) -> None:
    """Rows further apart than V, at any alignment, apart differently in the gradient: nothing between is touched."""
    takes(dtype)
    rows = Rows(5, vocab, dtype)
    packed = torch.full_like(rows.z, torch.nan)
    expected = rows.run(kernel, rows.z, grad=packed)
    for offset in (0, 1, 3):
        wide, apart = (torch.full((5, vocab + pad), 77.0, dtype=dtype) for pad in (8, 5))
        z, grad = wide[:, offset : offset + vocab], apart[:, offset : offset + vocab]
        z.copy_(rows.z)
        assert_alike("statistics", rows.run(kernel, z, grad=grad), expected, backend)
        assert_alike("gradient", grad, packed, backend)
        around = torch.ones(apart.shape, dtype=torch.bool)
        around[:, offset : offset + vocab] = False
        assert (apart[around] == 77).all(), "written outside the rows"
        rows.run(kernel, z, grad=z)
        around = torch.ones(wide.shape, dtype=torch.bool)
        around[:, offset : offset + vocab] = False
        assert (wide[around] == 77).all(), "written outside the rows"


def test_logits_without_unit_stride(kernel: ModuleType) -> None:
    rows = Rows(5, 33)
    expected = rows.run(kernel, rows.z)
    torch.testing.assert_close(rows.run(kernel, rows.z.t().contiguous().t()), expected)
    torch.testing.assert_close(rows.run(kernel, rows.z.repeat_interleave(2, 1)[:, ::2]), expected)


def test_arguments_without_unit_stride(kernel: ModuleType) -> None:
    rows = Rows(6, 33, with_q=True)
    expected = rows.run(kernel, rows.z)
    assert rows.q is not None
    rows.q = torch.stack([rows.q, rows.q], 1)[:, 0]
    rows.target = torch.stack([rows.target, rows.target], 1)[:, 0]
    rows.coefficients = rows.coefficients.t().contiguous().t()
    assert torch.equal(rows.run(kernel, rows.z), expected)


@pytest.mark.parametrize("m", [0, 1, 2, 257])
def test_rows_do_not_know_of_each_other(m: int, kernel: ModuleType, backend: str) -> None:
    """Any order and any share of the work among threads gives the same bits."""
    rows = Rows(m, 515 if backend in SAME_BITS else 516)  # 516: every row starts at a 16-byte boundary
    grad = torch.empty_like(rows.z)
    stats = rows.run(kernel, rows.z, grad=grad)
    order = torch.randperm(m, device="cpu", generator=torch.Generator().manual_seed(0)).to(rows.z.device)
    rows.target, rows.coefficients = rows.target[order], rows.coefficients[order]
    permuted = torch.empty_like(rows.z)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(rows.run(kernel, rows.z[order], grad=permuted), stats[:, order])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(permuted, grad[order])


def test_rows_further_apart_than_two_billion_elements(kernel: ModuleType, backend: str) -> None:
    """Offsets are 64 bits wide. Only the pages of the two rows are ever touched."""
    rows = Rows(2, 33, torch.float16)
    rows.target[:] = torch.tensor([3, 5])
    expected_grad = torch.empty_like(rows.z)
    expected = rows.run(kernel, rows.z, grad=expected_grad)
    try:
        memory = torch.empty(2**31 + 64, dtype=torch.float16)
    except RuntimeError as error:
        pytest.skip(f"4 GiB of address space: {error}")
    z = memory.as_strided((2, 33), (2**31, 1))
    z.copy_(rows.z)
    assert_alike("statistics", rows.run(kernel, z, grad=z), expected, backend)
    assert_alike("gradient", z, expected_grad, backend)


def test_a_target_out_of_range_is_nan(kernel: ModuleType, backend: str) -> None:
    """V stands for it where nobody has looked at the targets, as on a GPU: a NaN loss, no access out of bounds."""
    if backend == "cpu":
        pytest.skip("cpu: targets are checked before the kernel, which trusts them")
    rows = Rows(4, 33)
    rows.target[:] = torch.tensor([0, 33, -1, 32])
    stats = rows.run(kernel, rows.z, grad=torch.empty_like(rows.z))
    assert stats[0].isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64], ids=str)
def test_why_not_is_none_or_a_reason(dtype: torch.dtype, kernel: ModuleType) -> None:
    why = kernel.why_not(torch.zeros(1, 1, dtype=dtype))
    assert why is None or dtype in DTYPES or str(dtype) in why
    if dtype in DTYPES:
        assert why is None


def test_reference_takes_everything() -> None:
    for dtype in (torch.float16, torch.float64):
        assert truth_kernel.why_not(torch.zeros(1, 1, dtype=dtype, device="meta")) is None
    assert torch.__version__ in reference.describe()
