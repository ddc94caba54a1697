"""csrc/cuda/segment_sum on the CPU: the sums of its chunks in its order, bit for bit, and near those in fp64."""

import pytest
import torch
from torch import Tensor

from csrc.shimmed import SCHEDULES, Shimmed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 32
LENGTHS = {
    "one": [1],
    "a chunk": [32],
    "and one more": [33],
    "one long": [700],
    "short ones": [1, 2, 5] * 30,
    "around chunks": [31, 32, 33, 63, 64, 65, 95, 96, 97, 1],
    "long among short": [1] * 70 + [300] + [3] * 20 + [130, 1, 260],
}
WIDTHS = (1, 3, 8, 36, 264)


def problem(lengths: list[int], width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(len(lengths) + width)
    n = sum(lengths)
    values = (torch.randn(n, width, generator=g) * 10 ** torch.randn(n, 1, generator=g)).to(dtype)
    return values, torch.randperm(n, generator=g), torch.tensor(lengths).cumsum(0)


def in_order(rows: Tensor) -> Tensor:
    total = torch.zeros(rows.shape[1])
    for row in rows:
        total = total + row
    return total


def expected(values: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    segments = values[order].float().tensor_split(ends[:-1])
    return torch.stack([in_order(torch.stack([in_order(c) for c in rows.split(CHUNK)])) for rows in segments])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_sums(lengths: list[int], dtype: torch.dtype, shim: Shimmed) -> None:
    assert shim.native.segment_chunk == CHUNK
    for i, width in enumerate(WIDTHS):
        values, order, ends = problem(lengths, width, dtype)
        shim.schedule = SCHEDULES[i % 4]
        got = shim.segment_sum.segment_sum(values, order, ends)
        assert got.dtype == torch.float32
        assert torch.equal(got, expected(values, order, ends)), f"width {width}"
        truth, bound = (
            torch.stack([rows.sum(0) for rows in x[order].double().tensor_split(ends[:-1])])
            for x in (values, values.abs())
        )
        additions = min(max(lengths), CHUNK) + max(lengths) // CHUNK
        assert ((got - truth).abs() <= bound * additions * 2**-24).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_wider_than_a_block(dtype: torch.dtype, shim: Shimmed) -> None:
    for width in (1024, 1033):
        values, order, ends = problem([40, 1, 70], width, dtype)
        assert torch.equal(shim.segment_sum.segment_sum(values, order, ends), expected(values, order, ends))


def test_every_schedule_gives_the_same_bits(shim: Shimmed) -> None:
    problems = [problem(LENGTHS["long among short"], width, torch.bfloat16) for width in (8, 9)]
    for arguments in problems:
        found = []
        for shim.schedule in SCHEDULES:
            found.append(shim.segment_sum.segment_sum(*arguments))
        assert all(torch.equal(sums, found[0]) for sums in found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(dtype: torch.dtype, shim: Shimmed) -> None:
    """Views of wider rows, of which the rest is NaN, transposed and expanded ones: the same bits."""
    for width in (13, 16):
        values, order, ends = problem(LENGTHS["around chunks"], width, dtype)
        sums = expected(values, order, ends)
        for offset, pad in ((0, 24 - width), (8, 16 - width), (1, 7), (3, 2), (0, 1)):
            wide = torch.full((len(values), offset + width + pad), torch.nan, dtype=dtype)
            view = wide[:, offset : offset + width].copy_(values)
            assert torch.equal(shim.segment_sum.segment_sum(view, order, ends), sums), (offset, pad)
    assert torch.equal(shim.segment_sum.segment_sum(values.t().contiguous().t(), order, ends), sums)
    twice = torch.stack([order, order], 1)[:, 0]
    assert torch.equal(shim.segment_sum.segment_sum(values, twice, torch.stack([ends, ends], 1)[:, 0]), sums)
    one = values[:1].expand(len(values), -1)
    assert torch.equal(shim.segment_sum.segment_sum(one, order, ends), expected(one, order, ends))


def test_a_segment_among_many_is_found(shim: Shimmed) -> None:
    """The search for a chunk's segment, with long ones first, last and in between, at every phase of a chunk."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 4, (3000,), generator=g)
    lengths[::97] = torch.randint(33, 140, (len(lengths[::97]),), generator=g)
    lengths[0], lengths[-1] = 100, 65
    ends = lengths.cumsum(0)
    assert len(set((ends[(lengths > CHUNK).nonzero()[:, 0] - 1] % CHUNK).tolist())) > 15
    n = int(ends[-1])
    values = torch.randint(-1000, 1000, (n, 1), generator=g).float()
    sums = torch.zeros(3000).index_add_(0, torch.arange(3000).repeat_interleave(lengths), values[:, 0])
    assert torch.equal(shim.segment_sum.segment_sum(values, torch.arange(n), ends)[:, 0], sums)


def test_nothing_to_sum(shim: Shimmed) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert shim.segment_sum.segment_sum(torch.ones(0, 5), none, none).shape == (0, 5)
    assert shim.segment_sum.segment_sum(torch.ones(2, 0), torch.arange(2), torch.tensor([2])).shape == (1, 0)


def test_what_it_does_not_take(shim: Shimmed) -> None:
    assert shim.segment_sum.why_not(torch.ones(1, 1, dtype=torch.float64)) == "dtype is torch.float64"
    assert shim.segment_sum.why_not(torch.ones(1, 1)) == "device is cpu"
