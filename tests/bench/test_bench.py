"""The benchmarks themselves: whom they refuse, what a row holds, and the suite run once at smoke size."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from runs import benchmarked, records
from torch import Tensor

from bench import checks, peers, plots, report, rows
from bench.cases import DTYPES, Head
from bench.contest import Contest, Slow, expect
from bench.linear_cross_entropy import OP, floor, step
from bench.peers import LINEAR_CROSS_ENTROPY, Peer
from bench.shapes import HEADS, IGNORED_SHARES, head_cases, of_extent
from bench.timing import Lap, Race, peak_of

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = Head("tiny", 96, 48, 300, "fp32", 0.5)
TORCH_ALONE = {"eager", "compacted", "fastft"}  # need nothing that is not a dependency
MEMORY = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel resets no high-water mark")


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, peers.Loss], None]:
    """Adds a provider to the table."""

    def add(name: str, loss: peers.Loss) -> None:
        monkeypatch.setitem(LINEAR_CROSS_ENTROPY, name, Peer(lambda device: loss))

    return add


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignored", [0.0, 0.85])
def test_every_provider_has_a_row_or_a_reason(dtype: str, ignored: float) -> None:
    timed, absent = records(OP, replace(TINY, dtype=dtype, ignored=ignored))
    assert timed.keys() | absent.keys() == LINEAR_CROSS_ENTROPY.keys() | {"floor"}
    assert not timed.keys() & absent.keys()
    assert timed.keys() >= TORCH_ALONE | {"floor"}, absent
    if hasattr(F, "linear_cross_entropy"):
        assert timed.keys() >= {"torch-tuned", "tuned-compacted"}, absent


def test_what_a_row_says() -> None:
    timed, _ = records(OP, TINY)
    row = timed["fastft"]
    assert (row.op, row.case, row.dtype, row.ignored) == ("linear_cross_entropy", "tiny", "fp32", 0.5)
    assert row.shape == {"N": 96, "D": 48, "V": 300, "M": 48}
    assert row.torch == torch.__version__
    assert row.threads == torch.get_num_threads()
    assert row.device
    assert row.fastft
    assert row.rounds == len(row.samples_ms) >= 1
    assert row.ms_min == min(row.samples_ms) <= row.ms_median <= max(row.samples_ms)
    assert row.gflops == pytest.approx(6 * 48 * 48 * 300 / row.ms_median / 1e6)
    assert row.floor_ms == timed["floor"].ms_median
    assert timed["floor"].floor_share == timed["eager"].eager_factor == 1.0
    assert row.errors.keys() == {"loss", "dx", "dw"}
    assert 0 < max(row.errors.values()) < 1e-6
    assert row.deviation is not None
    assert row.deviation < 1e-5
    assert timed["eager"].deviation is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda x, w, y: 1.001 * F.cross_entropy(F.linear(x, w), y), "error of loss against fp64 is 1.00e-03"),
        (lambda x, w, y: F.cross_entropy(F.linear(x.detach(), w), y), "no gradient for x"),
        (lambda x, w, y: F.cross_entropy(F.linear(x, w * (1 + 1e-5)), y), "error of"),
        (lambda x, w, y: F.cross_entropy(F.linear(x, w), y) * float("nan"), "error of loss against fp64 is nan"),
        (lambda x, w, y: x.undefined, "AttributeError"),
    ],
    ids=["scaled", "detached", "inexact", "nan", "raises"],
)
def test_a_wrong_provider_has_no_row(
    wrong: peers.Loss, reason: str, provider: Callable[[str, peers.Loss], None]
) -> None:
    provider("wrong", wrong)
    timed, absent = records(OP, TINY, chosen=("wrong", "eager"))
    assert timed.keys() == {"floor", "eager"}
    assert reason in absent["wrong"]


def test_a_provider_that_is_wrong_at_full_size_only_has_no_row(provider: Callable[[str, peers.Loss], None]) -> None:
    case = replace(TINY, N=400)

    def forgets_the_last_chunk(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        if len(x) > case.reduced().N:
            y = y.index_fill(0, torch.arange(len(y) - 40, len(y)), -100)
        return F.cross_entropy(F.linear(x, w), y)

    provider("forgetful", forgets_the_last_chunk)
    timed, absent = records(OP, case, chosen=("forgetful", "eager"))
    assert "forgetful" in absent, timed
    assert "full size" in absent["forgetful"]
    assert "forgetful" not in timed


def test_reduced_size_keeps_what_matters() -> None:
    case = Head("gemma3", 1024, 640, 262144, "bf16", 0.85)
    assert case.M == 154
    reduced = case.reduced()
    assert (reduced.D, reduced.dtype, reduced.ignored) == (640, "bf16", 0.85)
    assert reduced.N * reduced.V <= 2**20


def test_the_grid() -> None:
    cases = head_cases({"cpu": HEADS["cpu"]})
    assert len(cases) == len(HEADS["cpu"]) * len(DTYPES) * len(IGNORED_SHARES) == len(set(map(str, cases)))
    assert {(2048, 576, 49152), (1024, 640, 262144), (4096, 384, 30522), (8192, 64, 32000)} == set(
        HEADS["cpu"].values()
    )


def test_inputs_are_the_same_in_both_precisions() -> None:
    case = replace(TINY, dtype="bf16", ignored=0.85)
    one, other = case.inputs(), case.inputs(torch.float64)
    assert torch.equal(one.x.double(), other.x)
    assert torch.equal(one.w.double(), other.w)
    assert torch.equal(one.y, other.y)
    assert int((one.y != -100).sum()) == case.M == 14


def test_the_floor_is_the_three_gemms_of_the_supervised_rows() -> None:
    with torch.profiler.profile(record_shapes=True) as profile:
        floor(TINY.inputs())()
    shapes = [event.input_shapes[:2] for event in profile.events() if event.name == "aten::mm"]
    n, d, v = TINY.M, TINY.D, TINY.V
    assert shapes == [[[n, d], [d, v]], [[n, v], [v, d]], [[v, n], [n, d]]]


def test_a_step_leaves_gradients() -> None:
    inputs = TINY.inputs()
    step(peers.eager("cpu"), inputs)()
    assert [tuple(g.shape) for g in inputs.left.values()] == [(96, 48), (300, 48)]
    inputs.reset()
    with pytest.raises(RuntimeError, match="no gradient"):
        inputs.left  # noqa: B018


def race(laps: dict[str, list[tuple[float, float]]], **options: Any) -> Race:
    """A race that was run already: provider -> (seconds, seconds of others) of its rounds."""
    made = Race("cpu", {}, lambda: None, **options)
    made.laps = {name: {r: Lap(*lap) for r, lap in enumerate(taken)} for name, taken in laps.items()}
    return made


def test_rounds_follow_the_first_call() -> None:
    made = race({name: [(seconds, 0.0)] for name, seconds in [("floor", 9.0), ("fastft", 2.0), ("a", 0.5), ("b", 4.0)]})
    assert {name: made.rounds(name) for name in made.laps} == {"floor": 2, "fastft": 3, "a": 6, "b": 0}


def test_ratios_pair_the_rounds() -> None:
    made = race({"floor": [(9, 0), (1, 0), (2, 0), (4, 0)], "a": [(9, 0), (3, 0), (5, 0)], "slow": [(18, 0)]})
    assert made.ratio("a", "floor") == (3 / 1 + 5 / 2) / 2
    assert made.ratio("slow", "floor") == 2.0
    assert made.ratio("slow", "nobody") is None
    assert made.numbers("a")["samples_ms"] == [3000, 5000]
    assert made.numbers("slow")["samples_ms"] == [18000]


def test_disturbed_laps_are_left_out_while_quiet_ones_remain() -> None:
    made = race({"floor": [(1, 0)] * 3, "a": [(1, 0), (5, 4.0), (2, 0.01)], "b": [(1, 0), (5, 4.0), (6, 3.0)]})
    assert made.numbers("a")["samples_ms"] == [2000]
    assert made.ratio("a", "floor") == 2.0
    assert made.numbers("b")["samples_ms"] == [5000, 6000]
    assert made.numbers("b")["other_cores"] == pytest.approx(7 / 11)


def test_turns_rotate() -> None:
    made = race({name: [(1.0, 0.0)] for name in "abc"})
    assert [made.order(r)[0] for r in range(1, 5)] == ["b", "c", "a", "b"]
    assert sorted(made.order(2)) == ["a", "b", "c"]


@MEMORY
def test_peak_memory_sees_what_is_freed_again() -> None:
    with peak_of("cpu") as peak:
        torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
    assert peak.bytes is not None
    assert 60 < peak.bytes / 2**20 < 72
    with peak_of("cpu") as peak:
        torch.empty(2**10, dtype=torch.uint8).fill_(1)
    assert peak.bytes is not None
    assert peak.bytes / 2**20 < 4


@MEMORY
def test_eager_pays_for_the_logits() -> None:
    case = Head("wide", 2048, 16, 32768, "fp32", 0.85)  # buffers above 32 MiB, which glibc gives back at once
    timed, _ = records(OP, case, chosen=("eager", "compacted"))
    logits = 2048 * 32768 * 4 / 2**20
    assert timed["eager"].peak_mib == pytest.approx(3 * logits, rel=0.1)
    assert timed["compacted"].peak_mib == pytest.approx(3 * 0.15 * logits, rel=0.15)


def test_refusal_is_relative_to_eager() -> None:
    eager = {"loss": 0.0, "dx": 1e-3, "dw": 1e-3}
    assert checks.refusal({"loss": 1e-3, "dx": 1.9e-3, "dw": 0.0}, eager, torch.bfloat16) is None
    assert "error of dx" in str(checks.refusal({"loss": 0.0, "dx": 2.1e-3, "dw": 0.0}, eager, torch.bfloat16))
    assert "error of loss" in str(checks.refusal({"loss": 1e-2, "dx": 0.0, "dw": 0.0}, eager, torch.bfloat16))


def test_names_of_providers() -> None:
    assert peers.named(LINEAR_CROSS_ENTROPY, "fastft, eager") == ["fastft", "eager"]
    with pytest.raises(pytest.UsageError, match="quick unknown; known: eager, "):
        peers.named(LINEAR_CROSS_ENTROPY, "quick")


def test_the_newest_row_counts(tmp_path: Path) -> None:
    timed, _ = records(OP, TINY)
    row = timed["fastft"]
    again = replace(row, ms_median=1.5)
    rows.append([row, timed["eager"], again], tmp_path)
    (path,) = tmp_path.glob("*/linear_cross_entropy.jsonl")
    assert rows.load(path, rows.Row) == [again, timed["eager"]]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "linear_cross_entropy.jsonl"
    path.write_text(json.dumps({"op": "linear_cross_entropy", "speed": 1}))
    with pytest.raises(ValueError, match=r"linear_cross_entropy\.jsonl:1: not a Row; .*speed"):
        rows.load(path, rows.Row)


def test_a_row_from_before_a_field_still_reads(tmp_path: Path) -> None:
    timed, _ = records(OP, TINY, chosen=())
    values = asdict(timed["floor"])
    assert values.pop("gb_per_s") is None
    path = tmp_path / "linear_cross_entropy.jsonl"
    path.write_text(json.dumps(values))
    assert rows.load(path, rows.Row) == [timed["floor"]]


def test_a_slow_dense_peer_sits_out_the_other_shares() -> None:
    slow, timed = Slow(1.0), list(records(OP, TINY, chosen=("eager", "compacted", "fastft"))[0].values())
    dense = {"torch-default": 1500.0, "torch-tuned": 900.0, "eager": 9000.0, "compacted": 9000.0, "fastft": 9000.0}
    slow.learn(OP, TINY, [replace(timed[0], provider=name, ms_min=ms) for name, ms in dense.items()])
    assert slow.absent(OP, replace(TINY, ignored=0.85)).keys() == {"torch-default"}
    assert "took 2 s a call at 50% ignored" in slow.absent(OP, TINY)["torch-default"]
    assert not slow.absent(OP, replace(TINY, dtype="bf16"))
    assert not slow.absent(replace(OP, name="another"), TINY)


def test_a_peer_known_to_be_too_slow_is_left_out() -> None:
    absent = Slow(1.0).absent(OP, replace(TINY, name="gemma3"))
    assert absent == {
        "torch-default": "a call takes over 2 minutes on two cores",
        "trl": "without Triton a call takes 15 to 20 s on two cores",
    }
    assert not Slow(1.0).absent(OP, TINY)


def test_what_is_measured_unless_more_is_asked_for() -> None:
    whole = head_cases({"cpu": HEADS["cpu"]})
    usual = {(case.name, case.dtype, case.ignored) for case in of_extent("usual", whole)}
    assert {(name, dtype, 0.85) for name in HEADS["cpu"] for dtype in DTYPES} < usual
    assert {place for place in usual if place[2] != 0.85} == {("smollm2", "bf16", 0.0)}
    assert of_extent("all", whole) == whole


def test_a_smoke_run_fails_on_a_provider_that_raises(provider: Callable[[str, peers.Loss], None]) -> None:
    """One that is wrong has no row, and that is all; one that is not installed as well."""
    provider("raises", lambda x, w, y: x.undefined)
    provider("wrong", lambda x, w, y: 1.001 * F.cross_entropy(F.linear(x, w), y))
    contest = Contest(OP, TINY, ("raises", "wrong", "eager", "quack"), cap=0.01, most=1)
    assert contest.absent.keys() == {"raises", "wrong"}
    with pytest.raises(RuntimeError, match=r"^providers do not run: raises: AttributeError: [^;]*$"):
        expect(True, contest.absent, contest.broken)
    expect(False, contest.absent, contest.broken)
    expect(True, contest.absent, [])


def test_smoke_run_and_report(tmp_path: Path) -> None:
    """The whole way: pytest, rows on disk, page and pictures."""
    options = ["-k", "cpu-tiny and (ignored0 or ignored85)", "--cap", "0.01", "--record", str(tmp_path)]
    printed = benchmarked("linear_cross_entropy", "--smoke", *options)
    assert "4 passed" in printed
    assert "x floor" in printed

    (path,) = tmp_path.glob("*/linear_cross_entropy.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.keys() == {field.name for field in fields(rows.Row)} for line in lines)
    assert {line["provider"] for line in lines} >= TORCH_ALONE | {"floor"}
    page = report.write(path.parent).read_text()
    for dtype in DTYPES:
        assert f"| tiny | 64 x 32 x 300 | {dtype} | 85% | 10 |" in page
    for picture in ("time", "memory"):
        assert (path.parent / f"linear_cross_entropy-{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_a_panel_without_a_provider_leaves_the_legend_its_color() -> None:
    axes = Figure().subplots(1, 2).tolist()
    for one, providers in zip(axes, (("fastft", "eager"), ("fastft",)), strict=True):
        plots.bars(one, plots.Panel("", ["a"], {name: {"a": 2.0} for name in providers}))
    handles, names = plots.legend(axes)
    assert [to_hex(handle.patches[0].get_facecolor()) for handle in handles] == [plots.COLORS[n] for n in names]  # type: ignore[attr-defined]


def test_panels_hold_what_was_measured() -> None:
    """One for each dtype, in it the cases in their order, each with its shares in theirs; the floor is the line."""
    timed, _ = records(OP, TINY, chosen=("fastft",))
    row, floor = timed["fastft"], timed["floor"]
    made = [replace(row, ignored=0.85), replace(row, dtype="bf16", case="half"), row, replace(row, case="other"), floor]
    fp32, bf16 = plots.panels(made, lambda row: row.ignored + 1)
    assert fp32.title.startswith("fp32; ")
    assert fp32.places == ["tiny\n50%", "tiny\n85%", "other\n50%"]
    assert fp32.values == {"fastft": {"tiny\n50%": 1.5, "tiny\n85%": 1.85, "other\n50%": 1.5}}
    assert bf16.places == ["half\n50%"]


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no rows here"):
        report.write(tmp_path)
    with pytest.raises(FileNotFoundError, match="no results yet"):
        rows.newest(tmp_path)


def test_the_newest_results_are_those_of_the_latest_date(tmp_path: Path) -> None:
    """Whatever the files' times, which a fresh clone sets anyhow, and whatever else lies there."""
    for name in ("2026-11-21-b", "2026-11-21-a", "2025-12-31-z", "scratch", "2026-11-22-empty"):
        (tmp_path / name).mkdir()
    for age, name in enumerate(("2026-11-21-b", "2026-11-21-a", "2025-12-31-z", "scratch")):
        path = tmp_path / name / "op.jsonl"
        path.touch()
        os.utime(path, (age, age))
    assert rows.newest(tmp_path).name == "2026-11-21-b"
