"""What only a GPU shows of the kernels: sizes, streams, graphs, devices, faults. Every test runs for each GPU backend.

The contracts in test_cross_entropy.py and test_rows.py run there too. For compute-sanitizer: -k "small".
"""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from tolerance import no_worse
from torch import Tensor

from fastft import dispatch
from fastft.kernels.reference import cross_entropy as reference
from kernels.test_cross_entropy import DTYPES, STATS, TRANSFORMS, assert_alike

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CHUNK = 64  # rows of fp64 truth at a time


def module(op: str, backend: str) -> ModuleType:
    loaded, why = dispatch.load(op, backend)
    if loaded is not None:
        why = loaded.why_not(torch.empty(1, 1, device="cuda"))
    if why is not None:
        pytest.skip(f"{backend}: {why}")
    assert loaded is not None
    return loaded


@pytest.fixture(params=["triton", "cuda"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    return module("cross_entropy", request.param)


@pytest.fixture(params=["triton", "cuda"])
def rows(request: pytest.FixtureRequest) -> ModuleType:
    return module("rows", request.param)


class Problem:
    """M rows of logits, `ignored` of them skipped and NaN, with coefficients of every kind."""

    def __init__(
        self, m: int, v: int, dtype: torch.dtype, *, ignored: float = 0.4, with_q: bool = False, padding: int = 0,
        device: str = "cuda", seed: int = 0,
    ) -> None:  # fmt: skip
        g = torch.Generator(device).manual_seed(seed)
        self.memory = torch.full((m, v + padding), torch.nan, dtype=dtype, device=device)
        self.z = self.memory[:, :v]
        self.z.copy_(torch.randn(m, v, generator=g, device=device) * 3)
        self.target = torch.randint(v, (m,), generator=g, device=device)
        skipped = torch.rand(m, generator=g, device=device) < ignored
        skipped[0] = False
        self.target[skipped] = -1
        self.z[skipped] = torch.nan
        self.coefficients = torch.randn(m, 3, generator=g, device=device)
        self.coefficients[::2, 1:] = 0  # plain rows: the label alone
        q = torch.rand(v, generator=g, device=device)
        self.q = q / q.sum() if with_q else None

    def run(self, kernel: ModuleType, grad: Tensor | None = None, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
        result: Tensor = kernel.cross_entropy(self.z, self.target, self.coefficients, self.q, scale, softcap, grad)
        return result

    def expected(self, part: slice, dtype: torch.dtype, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        z = self.z[part].to(dtype)
        grad, q = torch.empty_like(z), None if self.q is None else self.q.to(wide)
        coefficients = self.coefficients[part].to(wide)
        return reference.cross_entropy(z, self.target[part], coefficients, q, scale, softcap, grad), grad

    def check(self, stats: Tensor, grad: Tensor | None, scale: float = 1.0, softcap: float = 0.0) -> None:
        """Against fp64, in chunks of rows. The logits must still be there."""
        for start in range(0, len(self.z), CHUNK):
            part = slice(start, start + CHUNK)
            torch_stats, torch_grad = self.expected(part, self.z.dtype, scale, softcap)
            true_stats, true_grad = self.expected(part, torch.float64, scale, softcap)
            size = float(true_stats[1].abs().max())
            for name, g, t, f in zip(STATS, stats[:, part], torch_stats, true_stats, strict=True):
                no_worse(f"{name}, rows from {start}", g, t, f, torch.float32, scale=size if name != "correct" else 0.0)
            if grad is not None:
                size = 4.0 if self.z.shape[1] == 1 else 0.0
                what = f"gradient, rows from {start}"
                no_worse(what, grad[part], torch_grad, true_grad, grad.dtype, scale=size)


def nan_like(p: Problem) -> Tensor:
    """Room for a gradient, apart as the logits' rows are."""
    return torch.full_like(p.memory, torch.nan)[:, : p.z.shape[1]]


SIZES = {  # rows, classes, padding of a row
    "small": (5, 37, 0),
    "one class": (9, 1, 0),
    "small, rows in one block": (200, 1000, 24),
    "few classes": (7, 61, 2),
    "rows at any alignment": (70, 50257, 0),
    "odd and padded": (70, 50257, 7),
    "few long rows": (7, 128256, 0),
    "long rows": (300, 128256, 0),
    "longer than L2 holds": (150, 262144, 0),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_parity(size: str, dtype: torch.dtype, kernel: ModuleType) -> None:
    """Statistics and gradient, beside the logits and in their place, with the padding left alone."""
    m, v, padding = SIZES[size]
    p = Problem(m, v, dtype, padding=padding)
    grad = nan_like(p)
    stats = p.run(kernel, grad)
    p.check(stats, grad)
    assert_alike("statistics without a gradient", p.run(kernel), stats, "cuda")
    assert torch.equal(p.run(kernel, p.z), stats)
    assert torch.equal(p.z, grad)
    assert p.memory[:, v:].isnan().all()


@pytest.mark.parametrize("with_q", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), TRANSFORMS)
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        *(("few classes", dtype) for dtype in DTYPES),
        ("rows at any alignment", torch.bfloat16),
        ("few long rows", torch.float32),
        ("long rows", torch.bfloat16),
    ],
    ids=str,
)
def test_options(size: str, scale: float, softcap: float, with_q: bool, dtype: torch.dtype, kernel: ModuleType) -> None:
    m, v, padding = SIZES[size]
    p = Problem(m, v, dtype, padding=padding, with_q=with_q)
    grad = nan_like(p)
    p.check(p.run(kernel, grad, scale, softcap), grad, scale, softcap)


def test_a_full_device(kernel: ModuleType) -> None:
    """More rows than run at once, most of them ignored; twice, for the same bits whoever takes which row."""
    p = Problem(1000, 128256, torch.bfloat16, ignored=0.8)
    again, grad = p.z.clone(), nan_like(p)
    stats = p.run(kernel, grad)
    p.check(stats, grad)
    p.z = again
    assert torch.equal(p.run(kernel, p.z), stats)
    assert torch.equal(p.z, grad)


def test_gradient_rows_apart_from_logits_rows(kernel: ModuleType) -> None:
    """Both strides odd or even, and memory that starts off a 16-byte boundary."""
    p = Problem(40, 3001, torch.bfloat16)
    for offset, padding in ((0, 7), (1, 0), (3, 4), (8, 8)):
        memory = torch.full((40, offset + 3001 + padding), 7.0, dtype=torch.bfloat16, device="cuda")
        grad = memory[:, offset : offset + 3001]
        p.check(p.run(kernel, grad), grad)
        assert (memory[:, :offset] == 7).all()
        assert (memory[:, offset + 3001 :] == 7).all()


@pytest.mark.parametrize("v", [37, 50257, 128256])
def test_small_a_target_out_of_range_is_nan_and_no_fault(v: int, kernel: ModuleType) -> None:
    p = Problem(6, v, torch.bfloat16, ignored=0.0)
    whole = p.run(kernel, nan_like(p))
    p.target[:4] = torch.tensor([v, v + 1, 2**31 + 7, 2**62], device="cuda")
    stats = p.run(kernel, nan_like(p))
    torch.cuda.synchronize()
    assert stats[0].isnan().tolist() == [True] * 4 + [False] * 2
    assert torch.equal(stats[:, 4:], whole[:, 4:])


@pytest.mark.parametrize("m", [0, 1])
def test_small_no_supervised_row(m: int, kernel: ModuleType) -> None:
    z = torch.full((m, 33), torch.nan, device="cuda")
    target = torch.full((m,), -1, device="cuda")
    stats = kernel.cross_entropy(z, target, torch.full((m, 3), torch.nan, device="cuda"), None, 1.0, 0.0, z)
    assert stats.shape == (5, m)
    assert (stats == 0).all()
    assert (z == 0).all()


def test_more_than_two_billion_elements(kernel: ModuleType) -> None:
    """The last rows of 2^31 and more logits, in place, and zeros in all the others."""
    m, v = 16400, 131072
    needs = 2.2 * m * v
    if torch.cuda.mem_get_info()[0] < needs:
        pytest.skip(f"{needs / 2**30:.0f} GiB of GPU memory are not free")
    last = Problem(4, v, torch.bfloat16, ignored=0.0)
    last.coefficients[:] = torch.tensor([1.0, 0.0, 0.0])
    expected_grad = nan_like(last)
    expected = last.run(kernel, expected_grad)
    z = torch.full((m, v), torch.nan, dtype=torch.bfloat16, device="cuda")
    target, coefficients = torch.full((m,), -1, device="cuda"), torch.zeros(m, 3, device="cuda")
    z[-4:], target[-4:], coefficients[-4:] = last.z, last.target, last.coefficients
    stats = kernel.cross_entropy(z, target, coefficients, None, 1.0, 0.0, z)
    torch.testing.assert_close(stats[:, -4:], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z[-4:], expected_grad, rtol=2**-7, atol=1e-30)
    assert (stats[:, :-4] == 0).all()
    for part in z[:-4].split(1024):
        assert (part == 0).all()


def test_gather_and_scatter_more_than_two_billion_elements(rows: ModuleType) -> None:
    n, width = 70000, 32768
    if torch.cuda.mem_get_info()[0] < 4.4 * n * width:
        pytest.skip(f"{4.4 * n * width / 2**30:.0f} GiB of GPU memory are not free")
    valid = torch.tensor([0, 65535, 65536, n - 1], device="cuda")
    x = torch.randn(4, width, device="cuda").bfloat16()
    spread = rows.scatter_rows(x, valid, n)
    assert torch.equal(rows.gather_rows(spread, valid), x)
    spread[valid] = 0
    for part in spread.split(4096):
        assert (part == 0).all()


def after_a_while(tensor: Tensor, values: Tensor) -> None:
    """On the current stream, write `values` some milliseconds from now."""
    torch.cuda._sleep(20_000_000)  # cycles
    tensor.copy_(values)


def test_two_streams_at_once(kernel: ModuleType) -> None:
    """Each launch waits for its own stream, whose logits come late, and shares no scratch memory with the other."""
    problems = [Problem(300, 50304, torch.bfloat16, seed=seed) for seed in (1, 2)]
    expected_grads = [nan_like(p) for p in problems]
    expected = [p.run(kernel, grad) for p, grad in zip(problems, expected_grads, strict=True)]
    values = [p.z.clone() for p in problems]
    for p in problems:
        p.z.fill_(torch.nan)
    torch.cuda.synchronize()
    streams, stats = [torch.cuda.Stream() for _ in problems], []
    for stream, p, value in zip(streams, problems, values, strict=True):
        with torch.cuda.stream(stream):
            after_a_while(p.z, value)
            stats.append(p.run(kernel, p.z))
    torch.cuda.synchronize()
    for p, got, wanted, grad in zip(problems, stats, expected, expected_grads, strict=True):
        assert torch.equal(got, wanted)
        assert torch.equal(p.z, grad)


def captured(run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """`run` in a CUDA graph, and the tensor that a replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()  # compiles, and loads modules, which a capture may not
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph, result


@pytest.mark.parametrize(("m", "v"), [(40, 1000), (7, 128256), (1000, 32000)])
def test_cuda_graph(m: int, v: int, kernel: ModuleType) -> None:
    """Replays with other logits and targets, the share of ignored rows too, are what a call gives."""
    p, grad = Problem(m, v, torch.bfloat16), torch.empty(m, v, dtype=torch.bfloat16, device="cuda")
    graph, stats = captured(lambda: p.run(kernel, grad))
    for seed, ignored in ((1, 0.0), (2, 0.9), (3, 0.4)):
        other = Problem(m, v, torch.bfloat16, seed=seed, ignored=ignored)
        expected_grad = nan_like(other)
        expected = other.run(kernel, expected_grad)
        p.z.copy_(other.z)
        p.target.copy_(other.target)
        p.coefficients.copy_(other.coefficients)
        grad.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(stats, expected)
        assert torch.equal(grad, expected_grad)


def test_cuda_graph_of_rows(rows: ModuleType) -> None:
    """Compaction to a fixed capacity, gather and scatter, in one graph, for any number of supervised tokens."""
    target, x = torch.zeros(3000, dtype=torch.int64, device="cuda"), torch.randn(3000, 96, device="cuda")

    def run() -> Tensor:
        valid = rows.compact(target, -100, 3000)
        return rows.scatter_rows(rows.gather_rows(x, valid), valid, 3000)

    graph, result = captured(run)
    for share in (0.0, 0.3, 1.0):
        keep = torch.rand(3000, device="cuda") < share
        target.copy_(torch.where(keep, 5, -100))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(result, torch.where(keep[:, None], x, 0))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_on_another_device_than_the_current_one(kernel: ModuleType) -> None:
    p = Problem(50, 1000, torch.bfloat16, device="cuda:1")
    with torch.cuda.device(0):
        grad = nan_like(p)
        stats = p.run(kernel, grad)
        assert torch.cuda.current_device() == 0
    assert stats.device == p.z.device
    p.check(stats, grad)
