"""What only a GPU shows of the kernels of embedding rows: many rows, the same bits twice, no waiting.

The contracts in test_segment_sum.py and test_row_update.py run there too. For compute-sanitizer: -k "small".
"""

import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastft import dispatch
from fastft.embedding import SparseEmbedding
from fastft.kernels.reference import grouping as reference_grouping
from fastft.kernels.reference import row_update as reference
from fastft.optim import SparseAdamW, clip_grad_norm_
from fastft.optim.adamw import Rule
from fastft.optim.table import Table
from kernels.test_cross_entropy import DTYPES
from kernels.test_gpu import after_a_while, captured, module

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["triton", "cuda"])
def segments(request: pytest.FixtureRequest) -> ModuleType:
    return module("segment_sum", request.param)


@pytest.mark.parametrize(("n", "width", "dtype"), [
    (70, 5, torch.float32), (3000, 96, torch.float16), (20_000, 1000, torch.bfloat16), (20_000, 4096, torch.bfloat16),
])  # fmt: skip
def test_small_segment_sums(n: int, width: int, dtype: torch.dtype, segments: ModuleType) -> None:
    """Against fp64: half of the positions in one segment, as padding is, the others in short ones; twice, same bits."""
    g = torch.Generator("cuda").manual_seed(n)
    values = torch.randn(n, width, generator=g, device="cuda").to(dtype)
    ids = torch.randint(n, (n,), generator=g, device="cuda")
    ids, order = torch.where(ids < n // 2, n // 4, ids).sort(stable=True)
    counts = torch.unique_consecutive(ids, return_counts=True)[1]
    got = segments.segment_sum(values, order, counts.cumsum(0))
    group = torch.repeat_interleave(counts)
    expected = torch.zeros(len(counts), width, dtype=torch.float64, device="cuda")
    bound = torch.zeros_like(expected).index_add_(0, group, values[order].double().abs())
    expected.index_add_(0, group, values[order].double())
    assert ((got.double() - expected).abs() <= bound * 300 * torch.finfo(torch.float32).eps).all()
    assert torch.equal(got, segments.segment_sum(values, order, counts.cumsum(0)))


class Updated:
    """A table (3000, width) and its optimizer's state, on the GPU, after steps on random rows by `kernel`."""

    rule = Rule(0.9, 0.999, 1e-8, False, False)

    def __init__(self, kernel: ModuleType, dtype: torch.dtype, width: int, steps: int = 20) -> None:
        self.g, self.kernel = torch.Generator("cuda").manual_seed(0), kernel
        start = torch.randn(3000, width, generator=self.g, device="cuda").to(dtype)
        self.t = Table(start, self.rule, {}, "master", fast=True)
        for step in range(1, steps + 1):
            ids = self.rows()
            self.t.admit(ids)
            self.step(ids, torch.randn(len(ids), width, generator=self.g, device="cuda").to(dtype), step)

    def rows(self) -> Tensor:
        return torch.randint(2500, (700,), generator=self.g, device="cuda").unique()

    def read(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.kernel.read_rows(self.t, ids, self.rule, self.t.steps, self.t.leap)
        return rows

    def step(self, ids: Tensor, grad: Tensor, step: int) -> None:
        leap = self.t.leap
        self.t.advance((1 - 1e-4, 1e-2 / (1 - 0.9**step), (1 - 0.999**step) ** 0.5, 1e-2))
        self.kernel.step_rows(self.t, ids, grad, self.rule, self.t.steps, leap)


def update_module(backend: str) -> ModuleType:
    loaded, why = dispatch.load("row_update", backend)
    if loaded is not None:
        why = loaded.why_not(
            Table(torch.zeros(1, 1, device="cuda"), Updated.rule, {}, "master", fast=True), Updated.rule
        )
    if why is not None:
        pytest.skip(f"{backend}: {why}")
    assert loaded is not None
    return loaded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [37, 1024, 3000])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_small_row_updates(backend: str, width: int, dtype: torch.dtype) -> None:
    """As the reference on the GPU; twice, for the same bits."""
    kernel, everything = update_module(backend), torch.arange(3000, device="cuda")
    got, again, want = (Updated(k, dtype, width) for k in (kernel, kernel, reference))  # type: ignore[arg-type]
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.read(everything), want.read(everything), rtol=max(eps, 1e-5), atol=1e-5)
    for a, b, c in zip(got.t.buffers, again.t.buffers, want.t.buffers, strict=True):
        assert torch.equal(a[: got.t.used], b[: got.t.used])
        torch.testing.assert_close(a[: got.t.used], c[: got.t.used], rtol=1e-5, atol=1e-9)
    assert torch.equal(got.t.table, again.t.table)
    assert torch.equal(got.t.last, want.t.last)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_row_updates_wait_for_nothing(backend: str) -> None:
    """Reads and steps of admitted rows, the way of new steps' numbers to the device included."""
    u = Updated(update_module(backend), torch.bfloat16, 1024)
    ids, grad = u.rows(), torch.ones(700, 1024, dtype=torch.bfloat16, device="cuda")
    u.t.admit(ids)
    u.read(ids)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(21, 100):
            u.read(ids)
            u.step(ids, grad[: len(ids)], step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_scaled_steps_wait_for_nothing(backend: str, skipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GradScaler's scalars and a clipping put off; a skipped step is taken back when rows are read next."""
    update_module(backend)
    embedding = SparseEmbedding(3000, 1024, device="cuda", dtype=torch.bfloat16)
    optimizer = SparseAdamW(embedding.parameters(), lr=1e-2, backend=backend)
    ids, weight = torch.randint(2500, (700,), device="cuda"), embedding.weight

    def ready(found_inf: float) -> None:
        optimizer.zero_grad()
        optimizer.grad_scale, optimizer.found_inf = (torch.tensor(x, device="cuda") for x in (4.0, found_inf))
        embedding(ids).backward(torch.ones(700, 1024, dtype=torch.bfloat16, device="cuda"))
        clip_grad_norm_(embedding.parameters(), 1.0, defer=True)
        torch.cuda.synchronize()

    for found_inf in (0.0, 1.0):  # compiles; all rows are admitted
        ready(found_inf)
        optimizer.step()
    before = embedding(ids).detach()
    assert len(optimizer.tables[weight].steps) == 1
    ready(float(skipped))
    monkeypatch.setattr(optimizer.tables[weight], "admit", lambda ids: None)  # it waits for the number of new rows
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(optimizer.tables[weight].steps) == 2
    assert torch.equal(before, embedding(ids).detach()) == skipped
    assert len(optimizer.tables[weight].steps) == 2 - skipped


@pytest.fixture
def grouping() -> ModuleType:
    loaded, why = dispatch.load("grouping", "cuda")
    if loaded is not None:
        why = loaded.why_not(torch.tensor([0], device="cuda"), 1)
    if why is not None:
        pytest.skip(f"cuda: {why}")
    assert loaded is not None
    return loaded


def ids_of(n: int, rows: int, seed: int = 0) -> Tensor:
    """Half of them the last row, as padding is."""
    g = torch.Generator("cuda").manual_seed(seed)
    ids = torch.randint(rows, (n,), generator=g, device="cuda")
    ids[::2] = rows - 1
    return ids


@pytest.mark.parametrize("rows", [1, 2, 256, 257, 50257, 65536, 65537, 1 << 24, 1 << 32])
@pytest.mark.parametrize("n", [1, 2, 2048, 2049, 4864, 4865, 100_003])
def test_small_groups(n: int, rows: int, grouping: ModuleType) -> None:
    """As the reference on the GPU, on both sides of the count that CUB sorts in one block; twice, for the same."""
    assert dispatch.pick("grouping", dispatch.BACKENDS, "auto", ids_of(1, 1), 1) is grouping
    ids = ids_of(n, rows)
    before = ids.clone()
    got, again, want = grouping.grouped(ids, rows), grouping.grouped(ids, rows), reference_grouping.grouped(ids, rows)
    assert torch.equal(ids, before)
    for mine, repeated, theirs in zip(got, again, want, strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(mine, repeated)


def test_many_groups_strided_ids_and_none(grouping: ModuleType) -> None:
    strided = ids_of(20_000, 500).view(100, 200)[:, 7]
    for ids in (ids_of(20_000_000, 500), strided, ids_of(1, 500).expand(9000), ids_of(0, 500)):
        for mine, theirs in zip(grouping.grouped(ids, 500), reference_grouping.grouped(ids, 500), strict=True):
            assert torch.equal(mine, theirs)


def test_groups_wait_once(grouping: ModuleType) -> None:
    """For the number of groups, by torch's own count of what waits; test_groups_in_a_graph has the kernels' part."""
    ids = ids_of(9000, 50257)
    grouping.grouped(ids, 50257)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            grouping.grouped(ids, 50257)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in said if "called a synchronizing CUDA operation" in str(w.message)]) == 1


@pytest.mark.parametrize("n", [3000, 70_000])
def test_groups_in_a_graph(n: int, grouping: ModuleType) -> None:
    """A capture fails on whatever waits or leaves its stream, in CUB's sort too. Replays take other ids."""
    ids = ids_of(n, 50257)
    graph, out = captured(lambda: torch.stack(grouping.launched(ids, 50257)[:3]))
    for seed in (1, 2):
        ids.copy_(ids_of(n, 50257, seed))
        graph.replay()
        touched, order, ends = reference_grouping.grouped(ids, 50257)
        assert torch.equal(out[0, : len(touched)], touched)
        assert torch.equal(out[1], order)
        assert torch.equal(out[2, : len(ends)], ends)


def test_groups_on_a_stream_whose_ids_come_late(grouping: ModuleType) -> None:
    ids, late = ids_of(9000, 50257), ids_of(9000, 50257, 1)
    want = reference_grouping.grouped(late, 50257)
    grouping.grouped(ids, 50257)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        after_a_while(ids, late)
        got = grouping.grouped(ids, 50257)
    torch.cuda.synchronize()
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)
