"""Triton's cross-entropy run by its interpreter; test_triton_compiled.py has what that takes and a compiler refuses."""

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerance import no_worse
from torch import Tensor

from fastft import losses
from fastft.kernels.reference import cross_entropy as reference
from fastft.kernels.triton.tuning import BLOCKS, SPLIT_BLOCK, Block, Device, Plan, plan_for
from kernels import test_cross_entropy as contract
from kernels.interpreter import interpreted
from kernels.test_cross_entropy import DTYPES, STATS, TRANSFORMS, Rows

MODULE = "fastft.kernels.triton.cross_entropy"
# Blocks of 4 vectors: 16 classes in fp32, 32 in halves, so that small rows have many.
WAYS = {"resident": Plan(Block(4, 4, 1), 2, 0), "split": Plan(Block(4, 4, 1), 0, 3)}


@pytest.fixture(params=WAYS)
def kernel(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The module `kernels`, interpreted, one way through the rows."""
    call = functools.partial(interpreted, MODULE, "cross_entropy", plan=WAYS[request.param])
    return SimpleNamespace(cross_entropy=call)


@pytest.fixture
def backend() -> str:
    return "triton"


@pytest.fixture
def takes() -> Callable[[torch.dtype], None]:
    return lambda dtype: None


test_skipped_rows_are_not_read_and_get_zeros = contract.test_skipped_rows_are_not_read_and_get_zeros
test_logits_without_unit_stride = contract.test_logits_without_unit_stride
test_arguments_without_unit_stride = contract.test_arguments_without_unit_stride
test_a_target_out_of_range_is_nan = contract.test_a_target_out_of_range_is_nan


class Checked:
    """Statistics and gradient of `Rows` by a kernel, next to the reference's in its dtype and in fp64."""

    def __init__(self, rows: Rows, scale: float = 1.0, softcap: float = 0.0) -> None:
        self.rows, self.transform = rows, (scale, softcap)
        self.torch_grad, self.true_grad = (torch.empty_like(rows.z, dtype=t) for t in (rows.z.dtype, torch.float64))
        self.torch_stats = rows.run(reference, rows.z, scale, softcap, self.torch_grad)  # type: ignore[arg-type]
        self.true_stats = rows.run(reference, rows.z.double(), scale, softcap, self.true_grad)  # type: ignore[arg-type]

    def run(self, kernel: Any, z: Tensor, grad: Tensor | None) -> None:
        stats = self.rows.run(kernel, z, *self.transform, grad)
        for name, got, torchs, truth in zip(STATS, stats, self.torch_stats, self.true_stats, strict=True):
            size = float(self.true_stats[1].abs().max()) if name != "correct" else 0.0  # sums that cancel
            no_worse(name, got, torchs, truth, torch.float32, scale=size)
        if grad is not None:
            size = 4.0 if z.shape[1] == 1 else 0.0
            no_worse("gradient", grad, self.torch_grad, self.true_grad, grad.dtype, scale=size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_q", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), TRANSFORMS)
def test_against_the_reference_in_fp64(
    dtype: torch.dtype, with_q: bool, scale: float, softcap: float, kernel: SimpleNamespace
) -> None:
    """Coefficients of every sign, skipped rows, and V: one class, an odd number, whole blocks."""
    for vocab in (1, 37, 128):
        rows = Rows(6, vocab, dtype, with_q=with_q)
        Checked(rows, scale, softcap).run(kernel, rows.z, torch.full_like(rows.z, torch.nan))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype: torch.dtype, kernel: SimpleNamespace) -> None:
    """The gradient in the logits' own memory has the bits of the one beside them; statistics are the same without."""
    rows = Rows(6, 71, dtype, with_q=True)
    z, grad = rows.z.clone(), torch.full_like(rows.z, torch.nan)
    beside = rows.run(kernel, z, 0.5, 4.0, grad)  # type: ignore[arg-type]
    assert torch.equal(z, rows.z), "the logits were written to"
    assert torch.equal(rows.run(kernel, z, 0.5, 4.0, z), beside)  # type: ignore[arg-type]
    assert torch.equal(z, grad)
    assert torch.equal(rows.run(kernel, rows.z, 0.5, 4.0), beside)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("padding", "grad_padding"), [(0, 0), (3, 3), (8, 8), (1, 9), (3, 0), (0, 8)])
def test_strides(dtype: torch.dtype, padding: int, grad_padding: int, kernel: SimpleNamespace) -> None:
    """Rows and gradient rows at every distance from a 16-byte boundary, alike and not: nothing between is touched."""
    rows = Rows(6, 67, dtype)
    checked = Checked(rows)
    for offset in (0, 1):
        memory, grad_memory = (torch.full((6, 67 + offset + pad), 77.0, dtype=dtype) for pad in (padding, grad_padding))
        z, grad = memory[:, offset : offset + 67], grad_memory[:, offset : offset + 67]
        z.copy_(rows.z)
        checked.run(kernel, z, grad)
        assert torch.equal(z, rows.z)
        if (padding, grad_padding) == (3, 3):
            checked.run(kernel, z, z)
        for buffer in (memory, grad_memory):
            assert (buffer[:, :offset] == 77).all()
            assert (buffer[:, offset + 67 :] == 77).all()


def test_every_distance_from_a_boundary_at_either_end_of_a_row(kernel: SimpleNamespace) -> None:
    """Targets first, last and at the ends of blocks, in rows that start anywhere in a vector."""
    rows = Rows(16, 131)
    rows.target[:] = torch.tensor([0, 130, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128, 129, 1, 2, 3])
    Checked(rows).run(kernel, rows.z, torch.full_like(rows.z, torch.nan))


def test_a_certain_prediction_keeps_its_small_loss(kernel: SimpleNamespace) -> None:
    """nll and the target's gradient are right to a few roundings where p is 1 in fp32, and where exp underflows."""
    rows = Rows(4, 40)
    rows.target[:] = torch.tensor([0, 20, 39, 7])
    rows.coefficients[:] = torch.tensor([1.0, 0.0, 0.0])
    rows.z[:] = torch.linspace(-1, 1, 40)
    rows.z[torch.arange(3), rows.target[:3]] = 30.0
    rows.z[3, 7] = -300.0
    grad = torch.empty_like(rows.z)
    nll = rows.run(kernel, rows.z, grad=grad)[0]  # type: ignore[arg-type]
    z, y = rows.z.double(), rows.target[:, None]
    margin = z.gather(1, y)[:, 0] - z.scatter(1, y, -math.inf).logsumexp(1)
    torch.testing.assert_close(nll.double(), F.softplus(-margin, threshold=400.0), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.gather(1, y)[:, 0].double(), -torch.sigmoid(-margin), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.scatter(1, y, 0).double(), z.softmax(1).scatter(1, y, 0), rtol=1e-5, atol=1e-38)


def test_minus_infinity_is_no_class(kernel: SimpleNamespace) -> None:
    rows = Rows(4, 50)
    rows.target[:] = torch.tensor([3, 40, 0, 49])
    rows.z[:, 10:35] = -torch.inf
    rows.z[2] = -torch.inf
    rows.z[2, 0] = 1.5
    rows.coefficients[:, 1] = 0
    grad = torch.full_like(rows.z, torch.nan)
    stats = rows.run(kernel, rows.z, grad=grad)  # type: ignore[arg-type]
    left, truth = torch.cat([rows.z[:, :10], rows.z[:, 35:]], 1), torch.empty(4, 25, dtype=torch.float64)
    at = torch.where(rows.target >= 35, rows.target - 25, rows.target)
    true_stats = reference.cross_entropy(left.double(), at, rows.coefficients.double(), None, 1.0, 0.0, truth)
    torch.testing.assert_close(stats[[0, 1, 3, 4]].double(), true_stats[[0, 1, 3, 4]], rtol=1e-5, atol=1e-6)
    assert (grad[:, 10:35] == 0).all()
    torch.testing.assert_close(torch.cat([grad[:, :10], grad[:, 35:]], 1).double(), truth, rtol=1e-5, atol=1e-6)


def test_nan_in_a_supervised_row_is_seen_in_that_row_only(kernel: SimpleNamespace) -> None:
    rows = Rows(4, 50)
    rows.target[:] = torch.tensor([3, 40, 0, 49])
    rows.z[1, 17] = torch.nan
    rows.z[3, 49] = torch.nan
    grad = torch.zeros_like(rows.z)
    stats = rows.run(kernel, rows.z, grad=grad)  # type: ignore[arg-type]
    assert stats[:4].isnan().all(0).tolist() == [False, True, False, True]
    assert stats[:, [0, 2]].isfinite().all()
    assert grad.isnan().all(1).tolist() == [False, True, False, True]
    assert grad[[0, 2]].isfinite().all()


def test_correct_is_the_first_of_the_largest(kernel: SimpleNamespace) -> None:
    rows = Rows(6, 50)
    rows.z[:] = 0.0
    rows.z[:, [5, 20, 44]] = 2.0
    rows.target[:] = torch.tensor([5, 20, 44, 6, 0, 5])
    rows.z[5, 44] = 3.0
    assert rows.run(kernel, rows.z)[4].tolist() == [1, 0, 0, 0, 0, 0]  # type: ignore[arg-type]
    rows.z[:] = -3.4e38  # as masked vocabularies are
    rows.target[:] = torch.tensor([0, 0, 1, 49, 0, -1])
    assert rows.run(kernel, rows.z)[4].tolist() == [1, 1, 0, 0, 1, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(0, 7), (0, 0), (3, 0)])
def test_nothing_to_do(shape: tuple[int, int]) -> None:
    logits, target = torch.empty(shape), torch.tensor([0, -1, 5])[: shape[0]]
    stats = interpreted(MODULE, "cross_entropy", logits, target, torch.ones(shape[0], 3), None, 1.0, 0.0, logits)
    assert stats.shape == (5, shape[0])
    assert stats.isnan().all(0).tolist() == (target >= 0).tolist()


def test_a_gradient_that_cannot_be_written_in_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grad has strides \(1, 3\)"):
        interpreted(
            MODULE, "cross_entropy", torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(3, 3), None, 1.0,
            0.0, torch.zeros(4, 3).t(),
        )  # fmt: skip


def loss_and_gradient(name: str, tensors: list[Tensor], target: Tensor, options: dict[str, Any]) -> list[Tensor]:
    leaves = [t.requires_grad_() for t in tensors]
    loss = getattr(losses, name)(*leaves, target, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
def test_under_the_public_functions(name: str) -> None:
    """Whole, chunked, and with options, against the same function on the reference."""
    g = torch.Generator().manual_seed(0)
    x, w, target = torch.randn(12, 8, generator=g), torch.randn(20, 8, generator=g), torch.arange(12)
    target[3:7] = -100
    tensors = [x @ w.t()] if name == "cross_entropy" else [x, w]
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "weight": torch.rand(20, generator=g)}
    if name == "linear_cross_entropy":
        options["memory_budget"] = 3 * 20 * 4
    got, expected = (
        interpreted("kernels.test_triton", "loss_and_gradient", name, tensors, target, {**options, "backend": backend})
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(got, expected)


H100 = Device(132, 50 << 20)


def test_plans() -> None:
    """Rows that fill the device and fit its L2 are resident; few long rows, and rows far beyond L2, are split."""
    full = plan_for(8192, 131072 * 2, True, H100)
    assert (full.parts, full.programs) == (0, H100.processors)
    assert full.programs * 131072 * 2 < H100.l2_bytes
    assert plan_for(8192, 2000, True, H100).programs == BLOCKS[0][1].programs * H100.processors
    assert plan_for(5, 2000, True, H100) == plan_for(5, 2000, False, H100) == Plan(BLOCKS[0][1], 5, 0)
    assert plan_for(8, 131072 * 2, True, H100).parts > 4
    assert plan_for(8192, 262144 * 4, True, H100) == Plan(SPLIT_BLOCK, 8192, 1)
    for m in (1, 7, 131, 133, 1000, 20000):
        for row_bytes in (2, 1000, 64 << 10, 256 << 10, 2 << 20):
            with_grad, without = (plan_for(m, row_bytes, needed, H100) for needed in (True, False))
            assert with_grad.block == without.block
            assert with_grad.parts == without.parts
            assert with_grad.programs <= without.programs
