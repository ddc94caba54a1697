"""The benchmark of logits: what its floor reads and writes, fresh logits for everyone, its rows, pages and limits."""

import json
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import ROOT, benchmarked, records
from torch import Tensor

from bench import peers, report, rows
from bench.cases import DTYPES, Logits
from bench.cross_entropy import OP, floor, step
from bench.peers import CROSS_ENTROPY, Peer
from bench.shapes import IGNORED_SHARES, LOGITS, logit_cases

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = Logits("tiny", 96, 300, "fp32", 0.5)
TORCH_ALONE = ("eager", "compacted", "fastft")  # need nothing that is not a dependency, and no compiler


class Spends(torch.autograd.Function):
    """Cross-entropy that leaves its gradient where the logits were."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            loss = F.cross_entropy(leaf, y)
        z.detach().copy_(torch.autograd.grad(loss, leaf)[0])
        ctx.gradient = z.detach()
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, peers.Loss], None]:
    """Puts a provider before all others."""

    def add(name: str, loss: peers.Loss) -> None:
        others = dict(CROSS_ENTROPY)
        for other in others:
            monkeypatch.delitem(CROSS_ENTROPY, other)
        monkeypatch.setitem(CROSS_ENTROPY, "eager", others["eager"])
        monkeypatch.setitem(CROSS_ENTROPY, name, Peer(lambda device: loss))
        monkeypatch.setitem(CROSS_ENTROPY, "fastft", others["fastft"])

    return add


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignored", [0.0, 0.85])
def test_every_provider_has_a_row_or_a_reason(dtype: str, ignored: float) -> None:
    case = replace(TINY, dtype=dtype, ignored=ignored)
    timed, absent = records(OP, case, chosen=CROSS_ENTROPY.keys() - {"torch-compile"})
    assert timed.keys() | absent.keys() == CROSS_ENTROPY.keys() - {"torch-compile"} | {"floor"}
    assert not timed.keys() & absent.keys()
    assert timed.keys() >= {*TORCH_ALONE, "floor"}, absent


def test_what_a_row_says() -> None:
    timed, _ = records(OP, TINY, chosen=TORCH_ALONE)
    row = timed["fastft"]
    assert (row.op, row.case, row.dtype, row.ignored) == ("cross_entropy", "tiny", "fp32", 0.5)
    assert row.shape == {"N": 96, "V": 300, "M": 48}
    assert row.gflops is None
    assert row.gb_per_s == pytest.approx(2 * 48 * 300 * 4 / (row.ms_median / 1e3) / 1e9)
    assert timed["floor"].gb_per_s == pytest.approx(2 * 48 * 300 * 4 / (timed["floor"].ms_median / 1e3) / 1e9)
    assert row.floor_ms == timed["floor"].ms_median
    assert row.errors.keys() == {"loss", "dz"}
    assert 0 < max(row.errors.values()) < 1e-6
    assert row.deviation is not None
    assert row.deviation < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignored", IGNORED_SHARES)
def test_the_floor_reads_and_writes_the_supervised_rows_once(dtype: str, ignored: float) -> None:
    case = replace(TINY, dtype=dtype, ignored=ignored)
    call = floor(case.inputs())
    with torch.profiler.profile(record_shapes=True) as profile:
        written = call()
    copies = [event.input_shapes[:2] for event in profile.events() if event.name == "aten::copy_"]
    assert copies == [[[case.M, case.V]] * 2]
    assert {event.name for event in profile.events() if event.name.startswith("aten::")} == {"aten::copy_"}
    assert case.traffic == 2 * written.nbytes == 2 * case.M * case.V * DTYPES[dtype].itemsize


def test_everyone_starts_from_fresh_logits(provider: Callable[[str, peers.Loss], None]) -> None:
    """Spent ones would put whoever comes next, and the spender's own later rounds, far from eager."""
    seen = []

    def spends(z: Tensor, y: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return Spends.apply(z, y)  # type: ignore[no-any-return,no-untyped-call]

    provider("spender", spends)
    timed, absent = records(OP, TINY, cap=10.0)
    assert timed.keys() == {"floor", "eager", "spender", "fastft"}, absent
    assert timed["fastft"].deviation == pytest.approx(0, abs=1e-5)
    given = [z for z in seen if z.shape == (TINY.N, TINY.V)]
    assert len(given) == 5  # the check, for which a tiny case is small enough; round 0; three more
    assert all(torch.equal(z, TINY.inputs().values) for z in given)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda z, y: 1.001 * F.cross_entropy(z, y), "error of loss against fp64 is 1.00e-03"),
        (lambda z, y: F.cross_entropy(z, y) + 1e-6 * (z - z.detach()).sum(), "error of dz"),
        (lambda z, y: F.cross_entropy(z.detach(), y), "RuntimeError"),
        (lambda z, y: F.cross_entropy(z, y.clamp(min=0)), "error of"),
    ],
    ids=["scaled", "inexact", "detached", "learns ignored rows"],
)
def test_a_wrong_provider_has_no_row(
    wrong: peers.Loss, reason: str, provider: Callable[[str, peers.Loss], None]
) -> None:
    provider("wrong", wrong)
    timed, absent = records(OP, TINY, chosen=("wrong", "eager"))
    assert timed.keys() == {"floor", "eager"}
    assert reason in absent["wrong"]


def test_a_step_leaves_the_gradient_and_no_copy_of_it() -> None:
    inputs = TINY.inputs()
    with pytest.raises(RuntimeError, match="no gradient"):
        inputs.left  # noqa: B018
    step(Spends.apply, inputs)()
    assert inputs.left["dz"].data_ptr() == inputs.z.data_ptr()
    inputs.reset()
    assert torch.equal(inputs.z, inputs.values)
    with pytest.raises(RuntimeError, match="no gradient"):
        inputs.left  # noqa: B018


def test_inputs_are_the_same_in_both_precisions() -> None:
    case = replace(TINY, dtype="bf16", ignored=0.85)
    one, other = case.inputs(), case.inputs(torch.float64)
    assert other.z.dtype == torch.float64
    assert torch.equal(one.z.double(), other.z)
    assert torch.equal(one.y, other.y)
    assert int((one.y != -100).sum()) == case.M == 14


def test_the_grid() -> None:
    cases = logit_cases({"cpu": LOGITS["cpu"]})
    assert len(cases) == 2 * len(DTYPES) * len(IGNORED_SHARES) == len(set(map(str, cases)))
    assert {(case.N, case.V) for case in cases} == {(2048, 49152), (8192, 32000)}
    on_a_gpu = {(case.N, case.V, case.dtype) for case in logit_cases({"cuda": LOGITS["cuda"]}, 80 * 10**9)}
    half = {(8192, 131072, "bf16"), (4096, 50368, "bf16"), (1024, 262144, "bf16")}
    assert on_a_gpu == half | {(8192, 131072, "fp32")}
    on_a_small_one = {(case.N, case.V, case.dtype) for case in logit_cases({"cuda": LOGITS["cuda"]}, 24 * 10**9)}
    assert on_a_small_one == half


def test_smoke_run_and_report(tmp_path: Path) -> None:
    """The whole way: pytest, rows on disk, page and pictures; torch.compile where there is a compiler."""
    options = ["-k", "cpu-tiny and ignored85", "--cap", "0.01", "--record", str(tmp_path)]
    printed = benchmarked("cross_entropy", "--smoke", *options)
    assert "2 passed" in printed
    assert "GB/s" in printed
    assert "GFLOP/s" not in printed

    (path,) = tmp_path.glob("*/cross_entropy.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.keys() == {field.name for field in fields(rows.Row)} for line in lines)
    absent = [json.loads(line) for line in (path.parent / "absent.jsonl").read_text().splitlines()]
    assert {line["provider"] for line in lines + absent} == {*CROSS_ENTROPY, "floor"}
    page = report.write(path.parent).read_text()
    assert "| case | N x V | dtype | ignored | M | ms | GB/s | x floor |" in page
    for dtype in DTYPES:
        assert f"| tiny | 64 x 300 | {dtype} | 85% | 10 |" in page
    for picture in ("time", "memory"):
        assert (path.parent / f"cross_entropy-{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_shows_both_ops(tmp_path: Path) -> None:
    logits = list(records(OP, TINY, chosen=TORCH_ALONE)[0].values())
    head = {"op": "linear_cross_entropy", "shape": {"N": 96, "D": 8, "V": 300, "M": 48}, "gflops": 1.0}
    heads = [replace(row, **head, gb_per_s=None, errors={"dx": 1e-9, "dw": 3e-9}) for row in logits]
    rows.append([*logits, *heads], tmp_path)
    (folder,) = tmp_path.iterdir()
    first, second = re.split(r"^# ", report.write(folder).read_text(), flags=re.MULTILINE)[1:]
    assert first.startswith("cross_entropy on ")
    assert "## GB/s of the supervised rows\n" in first
    assert "## Largest relative error of dz against" in first
    assert second.startswith("linear_cross_entropy on ")
    assert "GB/s" not in second
    assert "## Largest relative error of dx and dw against" in second
    assert "| tiny | 96 x 8 x 300 | fp32 | 50% | 3.0e-09 | 3.0e-09 | 3.0e-09 |" in second
    assert len(list(folder.glob("*.png"))) == 4


def test_a_gpu_call_ends_within_nine_minutes() -> None:
    """All but the whole trainers and the data, which are the CPU's, is in it; the last has what the others leave."""
    script = (ROOT / "bench/gpu.sh").read_text()
    limits = [int(seconds) for seconds in re.findall(r"^(?:\w+=\d+ )?step \w+ (\d+) ", script, re.MULTILINE)]
    first = dict(re.findall(r"^bench (\w+) (\d+)$", script, re.MULTILINE))
    ((last, together),) = re.findall(r"^bench (\w+) \$\(\((\d+) - ", script, re.MULTILINE)
    assert len(limits) == 4
    assert {*first, last} == {path.stem for path in (ROOT / "bench").glob("*.py") if "DEVICES" in path.read_text()} - {
        "contest"
    }
    assert sum(map(int, first.values())) < int(together)
    assert sum(limits) + int(together) < 9 * 60
