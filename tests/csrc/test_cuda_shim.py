"""csrc/cuda runs on the CPU through cuda_shim.h: cross-entropy agrees with fp64, rows with the reference."""

import math

import pytest
import torch
from torch import Tensor

from csrc.problems import Problem, check, crafted, problem
from csrc.shimmed import SCHEDULES, Shimmed
from fastft.kernels.reference import rows as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TRANSFORMS = ((1.0, 0.0), (0.5, 0.0), (-2.0, 3.0))  # scale, softcap; 0 for none
Plan = tuple[int, int, int]
# cluster, threads, cached: nothing kept, all kept, kept in part, and so for 2, 4 and 8 blocks
PLANS: tuple[Plan, ...] = (
    (1, 32, 0),
    (1, 64, 4096),
    (1, 64, 40),
    (2, 32, 7),
    (2, 64, 4096),
    (4, 32, 100),
    (8, 32, 4096),
)


def call(
    shim: Shimmed, p: Problem, plan: tuple[int, ...] | None, grad: Tensor | None = None, schedule: int = 0
) -> Tensor:
    shim.schedule = schedule
    plan = plan if plan is None else shim.tuning.Plan(*plan)
    return shim.cross_entropy.cross_entropy(*p, grad, plan)


@pytest.mark.parametrize("has_q", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), TRANSFORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_worse_than_torch(dtype: torch.dtype, scale: float, softcap: float, has_q: bool, shim: Shimmed) -> None:
    for vocab in (1, 2, 7, 33, 515, 4099):
        p = problem(vocab, dtype, has_q=has_q, scale=scale, softcap=softcap)
        for i, plan in enumerate(PLANS):
            grad = torch.full_like(p.logits, torch.nan)
            stats = call(shim, p, plan, grad, SCHEDULES[(vocab + i) % 4])
            check(f"vocab {vocab}, plan {plan}", p, stats, grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_schedule_gives_the_same_bits(dtype: torch.dtype, shim: Shimmed) -> None:
    p = problem(1030, dtype, has_q=True, softcap=5.0)
    for plan in PLANS:
        found = []
        for schedule in SCHEDULES:
            grad = torch.full_like(p.logits, torch.nan)
            found.append((call(shim, p, plan, grad, schedule), grad))
        assert all(torch.equal(a, b) for pair in found for a, b in zip(pair, found[0], strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype: torch.dtype, shim: Shimmed) -> None:
    """The same bits as beside the logits; and the statistics do not depend on whether a gradient is made."""
    for vocab in (7, 1037):
        p = problem(vocab, dtype, has_q=True, scale=0.5, softcap=4.0)
        for i, plan in enumerate(PLANS):
            logits, beside = p.logits.clone(), torch.full_like(p.logits, torch.nan)
            stats = call(shim, p, plan, beside, SCHEDULES[i % 4])
            assert torch.equal(p.logits.nan_to_num(), logits.nan_to_num()), "the logits were written to"
            assert torch.equal(call(shim, p._replace(logits=logits), plan, logits, SCHEDULES[i % 4]), stats)
            assert torch.equal(logits, beside)
            assert torch.equal(call(shim, p, plan, None, SCHEDULES[i % 4]), stats)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(dtype: torch.dtype, shim: Shimmed) -> None:
    """Rows of logits and of the gradient at their own strides and offsets; nothing between rows is touched."""
    for vocab in (5, 19, 1029):
        source = problem(vocab, dtype, has_q=True)
        for offset in range(0, 8, 1 if vocab == 19 else 3):
            for pad, grad_pad in ((8, 8), (8, 9), (11, 8)):
                wide, apart = (torch.full((len(source.logits), vocab + n), 77.0, dtype=dtype) for n in (pad, grad_pad))
                p = source._replace(logits=wide[:, offset : offset + vocab].copy_(source.logits))
                grad = apart[:, 8 - offset : 8 - offset + vocab]
                check(f"offset {offset}", p, call(shim, p, PLANS[offset % len(PLANS)], grad, offset % 4), grad)
                around = torch.ones(apart.shape, dtype=torch.bool)
                around[:, 8 - offset : 8 - offset + vocab] = False
                assert (apart[around] == 77).all(), "written outside the rows"


def test_the_first_of_the_largest_is_correct(shim: Shimmed) -> None:
    p = crafted([[3.0, 1.0, 3.0, 3.0, 0.0] * 9] * 6, [0, 2, 3, 1, 44, 40])
    for plan in PLANS:
        assert call(shim, p, plan)[4].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_certain_prediction_keeps_its_small_loss(shim: Shimmed) -> None:
    p = crafted([[0.0] * 20 + [gap] + [-1.0] * 30 for gap in (20.0, 40.0, 85.0)], [20] * 3)
    for plan in PLANS:
        grad = torch.empty_like(p.logits)
        check(f"plan {plan}", p, call(shim, p, plan, grad), grad)


def test_infinite_and_nan_logits(shim: Shimmed) -> None:
    low = -math.inf
    rows = [[low] * 30 + [1.0, 2.0] + [low] * 30, [low] * 61 + [0.5], [low] * 62, [1.0] * 40 + [math.nan] + [1.0] * 21]
    p = crafted(rows, [30, 61, 3, 5])
    for plan in PLANS:
        grad = torch.full_like(p.logits, 77.0)
        stats = call(shim, p, plan, grad)
        expected = torch.tensor([math.log1p(math.e), 2.0 + math.log1p(1 / math.e)])
        torch.testing.assert_close(stats[:2, 0], expected)
        assert stats[[0, 1, 3, 4], 1].tolist() == [0.0, 0.5, 0.0, 1.0]
        assert (grad[1] == 0).all()
        assert (grad[0, :30] == 0).all()
        assert (grad[0, 32:] == 0).all()
        assert stats[0, 2:].isnan().all()
        assert stats[1, 3].isnan()
        assert grad[3].isnan().all()


def test_a_target_out_of_range_is_nan_and_reads_nothing(shim: Shimmed) -> None:
    p = problem(33, torch.float32)
    p.target[0], p.target[3] = 33, 2**40
    for plan in PLANS:
        grad = torch.full_like(p.logits, torch.nan)
        stats = call(shim, p, plan, grad)
        check(f"plan {plan}", p, stats, grad)
        assert stats[0].isnan().tolist() == [i in (0, 3) for i in range(len(p.target))]


def test_the_plan_of_the_wrapper(shim: Shimmed) -> None:
    """Real vocabularies, planned for an H100: clusters of 1, 2, 4 and 8; with few rows more."""
    for vocab, dtype in (
        (32003, torch.bfloat16),
        (50257, torch.float16),
        (128256, torch.bfloat16),
        (128256, torch.float32),
    ):
        p = problem(vocab, dtype).rows(3)
        grad = torch.full_like(p.logits, torch.nan)
        check(f"vocab {vocab}", p, call(shim, p, None, grad), grad)


# compute capability, multiprocessors, shared memory per block and multiprocessor and reserved, L2
DEVICES = {
    "A100": (80, 108, 163 << 10, 164 << 10, 1024, 40 << 20),
    "RTX 4090": (89, 128, 99 << 10, 100 << 10, 1024, 72 << 20),
    "H100": (90, 132, 227 << 10, 228 << 10, 1024, 50 << 20),
    "B200": (100, 148, 227 << 10, 228 << 10, 1024, 126 << 20),
}


@pytest.mark.parametrize("name", DEVICES)
def test_plans_are_ones_that_the_device_can_run(name: str, shim: Shimmed) -> None:
    device = shim.tuning.Device(*DEVICES[name])
    for rows in (1, 16, 512, 8192):
        for vocab in (1, 7, 1000, 32000, 50368, 128256, 151936, 262144, 1000003):
            for with_grad in (True, False):
                plan = shim.tuning.plan_for(rows, vocab * 2, with_grad, device)
                assert plan.cluster in ((1, 2, 4, 8) if device.capability >= 90 else (1,))
                assert plan.threads in (32, 64, 128, 256, 512, 1024)
                sums = -(-plan.cluster * (plan.threads // 32) * 20 // 16)
                assert (sums + plan.cached) * 16 <= device.shared_per_block
                assert with_grad or plan.cached == 0
                if with_grad and device.capability >= 90 and vocab <= 262144:
                    assert plan.cached * plan.cluster * 8 >= vocab - 7, "a bf16 row that is read twice"


def test_no_rows(shim: Shimmed) -> None:
    p = crafted([[1.0, 2.0]], [0]).rows(0)
    assert call(shim, p, None, p.logits).shape == (5, 0)


def test_a_refused_launch_names_the_kernel(shim: Shimmed) -> None:
    p = problem(33, torch.float32)
    with pytest.raises(RuntimeError, match="cross_entropy: more shared memory than a block can have"):
        call(shim, p, (1, 64, 1 << 20))
    with pytest.raises(RuntimeError, match="cross_entropy: invalid configuration argument"):
        call(shim, p, (16, 64, 0))


# Rows: the same bits as the reference

TILE = 2048  # positions per block of compact
POSITIONS = (0, 1, 31, TILE - 1, TILE, TILE + 1, 5 * TILE + 77)
IGNORED = -100


def targets(n: int, share: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(n)
    target = torch.randint(50, (n,), generator=g)
    return target.masked_fill(torch.rand(n, generator=g) < share, IGNORED)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
def test_compact(share: float, shim: Shimmed) -> None:
    for i, n in enumerate(POSITIONS):
        shim.schedule = SCHEDULES[i % 4]
        target = targets(n, share)
        valid = shim.rows.compact(target, IGNORED)
        assert torch.equal(valid, reference.compact(target, IGNORED))
        for capacity in {0, 1, len(valid) - 1, len(valid), len(valid) + 1, n + TILE} - {-1}:
            expected = reference.compact(target, IGNORED, capacity)
            assert torch.equal(shim.rows.compact(target, IGNORED, capacity), expected)


def test_compact_by_any_index_and_stride(shim: Shimmed) -> None:
    target = targets(3000, 0.5)
    assert torch.equal(shim.rows.compact(target, 7), reference.compact(target, 7))
    assert torch.equal(shim.rows.compact(target[::3], IGNORED), reference.compact(target[::3], IGNORED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8], ids=str)
@pytest.mark.parametrize("width", [1, 3, 8, 66, 520])
def test_gather_and_scatter(width: int, dtype: torch.dtype, shim: Shimmed) -> None:
    """Rows at any alignment and stride, for any share of positions, with entries of -1 last."""
    for n in (1, 8, 67):
        for share in (0.0, 0.5, 1.0):
            for offset, pad in ((0, 0), (1, 3), (8, 16)):
                shim.schedule = SCHEDULES[(n + offset) % 4]
                wide = torch.arange(n * (width + offset + pad)).to(dtype).reshape(n, -1)
                x = wide[:, offset : offset + width]
                valid = reference.compact(targets(n, share), IGNORED)
                for index in (valid, torch.cat([valid, torch.full((5,), -1)])):
                    rows = reference.gather_rows(x, index)
                    assert torch.equal(shim.rows.gather_rows(x, index), rows)
                    strided = torch.cat([rows, rows], 1)[:, :width]
                    expected = reference.scatter_rows(rows, index, n)
                    assert torch.equal(shim.rows.scatter_rows(strided, index, n), expected)
                    longer = reference.scatter_rows(rows, index, n + 30)
                    assert torch.equal(shim.rows.scatter_rows(rows, index, n + 30), longer)


def test_one_row_among_many_is_found(shim: Shimmed) -> None:
    """The search for a row's place, through every size of what is left to search."""
    for count in (1, 2, 31, 32, 33, 1000, 1025, 5000):
        valid = torch.arange(count) * 3 + 1
        rows = torch.arange(1, count + 1, dtype=torch.float32)[:, None]
        expected = reference.scatter_rows(rows, valid, 3 * count)
        assert torch.equal(shim.rows.scatter_rows(rows, valid, 3 * count), expected)


def test_positions_that_are_none_are_zero_rows(shim: Shimmed) -> None:
    x = torch.ones(4, 3)
    got = shim.rows.gather_rows(x, torch.tensor([3, -1, 4, 1 << 40, -5, 0]))
    assert got[:, 0].tolist() == [1, 0, 0, 0, 0, 1]


def test_nothing_to_move(shim: Shimmed) -> None:
    x, none = torch.ones(4, 3), torch.zeros(0, dtype=torch.int64)
    assert shim.rows.gather_rows(x, none).shape == (0, 3)
    assert shim.rows.gather_rows(x[:, :0], torch.tensor([1])).shape == (1, 0)
    assert torch.equal(shim.rows.scatter_rows(x[:0], none, 2), torch.zeros(2, 3))
    assert shim.rows.scatter_rows(x[:0], none, 0).shape == (0, 3)
