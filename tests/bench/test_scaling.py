"""What time grows with: the series, the fitted powers, a step on several processes; and errors where they are hard."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from runs import benchmarked

from bench import accuracy, peers, plots, processes, report, rows, trends
from bench.accuracy import CONDITIONS, case_of, inputs_of, measured, outputs
from bench.cases import HeadInputs
from bench.peers import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Peer
from bench.rows import Absence, Accuracy, Row
from bench.shapes import HEAD_REST, head_series, table_series
from bench.tables import batches

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ("--smoke", "--cap", "0.01", "--most", "2")


@pytest.mark.parametrize("device", HEAD_REST)
def test_one_axis_of_a_head_grows(device: str) -> None:
    rest = HEAD_REST[device]
    for case in head_series(device, "usual"):
        axis = case.name.removeprefix("head-")
        assert {a: n for a, n in case.shape.items() if a != axis} == {a: n for a, n in rest.items() if a != axis}
    sizes = {axis: [c.shape[axis] for c in head_series(device, "usual") if c.name == f"head-{axis}"] for axis in rest}
    assert all(len(set(grown)) == 4 and max(grown) >= 8 * min(grown) for grown in sizes.values())


def test_one_axis_of_a_table_grows() -> None:
    cases = table_series("cpu", "usual")
    batch = [case for case in cases if case.name == "table-U"]
    assert len({case.V for case in batch}) == 1
    assert max(case.shape["U"] for case in batch) > 8 * min(case.shape["U"] for case in batch)
    tall = [case for case in cases if case.name == "table-V"]
    assert len({(case.N, case.shape["U"]) for case in tall}) == 1
    assert len({case.V for case in tall}) == len(tall) == 3
    assert len(table_series("cpu", "all")) == len(cases) + 1


def test_ids_among_the_most_frequent_rows() -> None:
    few = batches(64, 300, 10).unique()
    assert len(few) == 10
    assert torch.isin(few, batches(4096, 300).flatten().bincount().topk(40).indices).all()
    assert torch.equal(batches(64, 300, 300), batches(64, 300))


@pytest.mark.parametrize("power", [0.0, 1.0, -1.0, 2.5])
def test_the_power_of_a_power_law_is_found(power: float) -> None:
    assert trends.slope([(x, 3 * x**power) for x in (2, 8, 16, 64)]) == pytest.approx(power, abs=1e-12)


def test_powers_are_of_each_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(case: str, provider: str, ms: float, **shape: int) -> Row:
        where = {"op": "scaling", "provider": provider, "case": case, "shape": shape, "dtype": "fp32", "ignored": 0.0}
        about = {"device": "some", "driver": "d", "threads": 2, "torch": "2", "fastft": "0", "taken": rows.now()}
        share = {"floor_ms": 1.0, "floor_share": 1 / ms, "eager_factor": None, "deviation": None}
        times = {"ms_min": ms, "ms_median": ms, "rounds": 1, "samples_ms": [ms], "other_cores": None, "gflops": None}
        return Row(**where, **about, **times, **share, peak_mib=None, errors={})  # type: ignore[arg-type]

    made = [row("head-N", "fastft", 5.0, N=n, M=4) for n in (64, 16, 32)]
    made += [row("head-N", "eager", n / 2, N=n, M=4) for n in (16, 32)] + [row("head-P", "fastft", 1.0, N=16, P=1)]
    of_n, of_p = trends.series_of(made)
    assert (of_n.axis, of_n.rest, of_p.axis) == ("N", "M = 4, fp32", "P")
    assert of_n.points == {"fastft": [(16, 5.0), (32, 5.0), (64, 5.0)], "eager": [(16, 8.0), (32, 16.0)]}
    assert of_n.slopes == {"fastft": pytest.approx(0.0), "eager": pytest.approx(1.0)}
    assert of_p.slopes == {}
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    plots.draw_trends([of_n, of_p], tmp_path / "scaling.png", "")
    first = drawn[0].axes[0]
    assert [line.get_label() for line in first.lines] == ["fastft: N^0.00", "eager: N^1.00"]
    assert (first.get_xlabel(), first.get_ylabel()) == ("N (tokens)", "median ms")


def test_smoke_run_of_series_and_report(tmp_path: Path) -> None:
    """One series of each kind, and two processes: rows that passed their check, and their page."""
    benchmarked("scaling", *QUICK, "--record", str(tmp_path), "-k", "head-N or table-V or processes")
    (path,) = tmp_path.glob("*/scaling.jsonl")
    made = rows.load(path, Row)
    by = {(row.case, row.provider) for row in made}
    heads = {(case, provider) for case in ("head-N", "head-P") for provider in ("floor", "eager", "fastft")}
    assert by == heads | {("table-V", provider) for provider in ("floor", "eager", "sparse-adam", "fastft")}
    assert all(row.errors for row in made if row.provider != "floor")
    assert {row.shape["P"] for row in made if row.case == "head-P"} == {1, 2}
    assert len({row.device for row in made}) == 1
    page = report.write(path.parent).read_text()
    assert "| series | at rest | axis | wanted | floor | fastft | eager | sparse-adam |" in page
    assert "| head-N | D = 32, V = 256, M = 16, fp32 | N: tokens | 0 |" in page
    assert (path.parent / "scaling.png").read_bytes().startswith(b"\x89PNG")
    lines, _ = report.summary(path.parent)
    assert lines[0].startswith("time ~ N^b, head-N: ")


def test_parts_of_a_batch_make_the_whole() -> None:
    """Two processes' loss and dw are those of one; a wrong one has no row."""
    case = processes.Part("head-P", 96, 16, 64, "fp32", 0.5, P=2)
    whole = [record for record in processes.measured(replace(case, P=1), 1)[0] if isinstance(record, Row)]
    made, absent, broken = processes.measured(case, 1)
    assert [row.provider for row in made] == [row.provider for row in whole] == ["floor", "eager", "fastft"]
    assert not absent
    assert not broken
    for row in made:
        assert isinstance(row, Row)
        assert row.shape == {"N": 96, "D": 16, "V": 64, "P": 2, "M": 48}
        assert row.rounds == 1
        assert row.other_cores is None
        assert row.provider == "floor" or 0 < max(row.errors.values()) < 1e-6


# Errors


@pytest.mark.parametrize("op", accuracy.OPS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_conditions_are_what_they_say(op: str, dtype: str) -> None:
    case = case_of(op, dtype, "cpu", smoke=True)
    made = {condition.name: inputs_of(case, condition) for condition in CONDITIONS}
    logits = {n: (i.x @ i.w.T if isinstance(i, HeadInputs) else i.z).detach().float() for n, i in made.items()}
    assert logits["plain"].std() == pytest.approx(1.0, rel=0.1)
    assert logits["sharp"].std() == pytest.approx(32.0, rel=0.1)
    learned = (made["stretches"].y != -100).nonzero()[:, 0].tolist()
    assert learned == [*range(32, 40), *range(56, 64)]
    wide = inputs_of(case, CONDITIONS[1], torch.float64)
    own = made["sharp"]
    for name in ("x", "w") if isinstance(own, HeadInputs) else ("z",):
        assert torch.equal(getattr(own, name).double(), getattr(wide, name))
    assert torch.equal(own.y, wide.y)


@pytest.mark.parametrize(
    ("op", "known"), [("cross_entropy", CROSS_ENTROPY), ("linear_cross_entropy", LINEAR_CROSS_ENTROPY)]
)
def test_a_tiny_denominator_is_the_same_for_a_keyword_and_a_scaled_mean(op: str, known: dict[str, Peer]) -> None:
    case = case_of(op, "fp32", "cpu", smoke=True)
    plain, *_, tiny = CONDITIONS
    for name in ("eager", "fastft"):
        provider = known[name].load("cpu")
        first, other = (outputs(provider, known[name], case, condition) for condition in (plain, tiny))
        factor = case.M / tiny.num_items  # type: ignore[operator]
        for output in first:
            torch.testing.assert_close(other[output], first[output] * factor, rtol=1e-5, atol=0.0)


def test_whoever_has_no_times_has_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        LINEAR_CROSS_ENTROPY, "wrong", Peer(lambda device: lambda x, w, y: 1.5 * F.cross_entropy(F.linear(x, w), y))
    )
    monkeypatch.setitem(LINEAR_CROSS_ENTROPY, "raises", Peer(lambda device: lambda x, w, y: x.undefined))
    case = case_of("linear_cross_entropy", "fp32", "cpu", smoke=True)
    made, broken = measured("linear_cross_entropy", case, ("wrong", "raises", "fastft"))
    assert set(broken) == {"raises"}
    of = {(row.provider, row.case): row for row in made if isinstance(row, Accuracy)}
    assert len(of) == 2 * len(CONDITIONS)
    for condition in CONDITIONS:
        wrong, own = (of[name, f"linear_cross_entropy {condition.name}"] for name in ("wrong", "fastft"))
        assert wrong.errors == {name: pytest.approx(0.5, rel=1e-3) for name in ("loss", "dx", "dw")}
        assert all(own.errors[name] < 2 * own.eager[name] for name in ("dx", "dw"))
    assert {row.provider for row in made if isinstance(row, Absence)} == {"raises"}


def test_smoke_run_of_errors_and_report(tmp_path: Path) -> None:
    benchmarked("accuracy", *QUICK, "--record", str(tmp_path), "-k", "bf16")
    (path,) = tmp_path.glob("*/accuracy.jsonl")
    made = rows.load(path, Accuracy)
    absent = [json.loads(line) for line in (path.parent / "absent.jsonl").read_text().splitlines()]
    for op, known in accuracy.OPS.items():
        there = {row.provider for row in made if row.case.startswith(f"{op} ")}
        assert there | {line["provider"] for line in absent if line["case"] == op} == known.keys()
        assert there >= {"eager", "fastft"}
    page = report.write(path.parent).read_text()
    assert "| condition | dtype | output | eager | fastft | compacted |" in page
    assert "| linear_cross_entropy sharp | bf16 | dw | " in page
    assert (path.parent / "accuracy.png").read_bytes().startswith(b"\x89PNG")


# Peers that are called through more than one function


def test_trl_takes_labels_as_they_are() -> None:
    pytest.importorskip("trl")
    case = case_of("linear_cross_entropy", "fp32", "cpu", smoke=True)
    got, eager = (
        outputs(LINEAR_CROSS_ENTROPY[n].load("cpu"), Peer(peers.eager), case, CONDITIONS[0]) for n in ("trl", "eager")
    )
    for name in eager:
        torch.testing.assert_close(got[name], eager[name], rtol=1e-4, atol=1e-6)
