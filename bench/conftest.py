"""Command-line options of the benchmarks, and where their rows go: to the terminal, and with --record to a file.

python -m pytest bench/cross_entropy.py                              given logits: the grid, every peer
python -m pytest bench/linear_cross_entropy.py                       heads: the same
python -m pytest bench/embedding.py                                  training steps of a table: the same
python -m pytest bench/trainer.py                                    steps of whole trainers
python -m pytest bench/scaling.py                                    what time grows with
python -m pytest bench/accuracy.py                                   errors against fp64, where it is hard too
python -m pytest bench/linear_cross_entropy.py -k "thin and fp32"    some of its cases
... --providers fastft,eager    some of the providers; the floor always runs
... --cap 3 --most 15           more rounds
... --all                       every shape and share; some 40 minutes on two cores; the usual ones take under 15
... --record                    append the rows to bench/results/<date>-<device>/
python -m pytest bench                                               every op
"""

from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import peers, rows
from bench.cases import Case
from bench.contest import Contest, Op, Slow, expect
from bench.rows import Record
from bench.shapes import Extent

PROVIDERS = {**peers.LINEAR_CROSS_ENTROPY, **peers.CROSS_ENTROPY, **peers.EMBEDDING, **dict.fromkeys(peers.TRAINERS)}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks of fastft")
    group.addoption("--providers", default="all", help="comma-separated names from bench/peers.py (default: all)")
    group.addoption("--cap", type=float, default=1.0, help="seconds per provider and case after its first call (1)")
    group.addoption("--most", type=int, default=5, help="largest number of rounds (5)")
    group.addoption(
        "--slow", type=float, default=5.0,
        help="a peer that takes longer per call (seconds, 5), whatever is ignored, runs at one ignored share only",
    )  # fmt: skip
    group.addoption("--all", action="store_true", help="every shape and share, not only the usual ones")
    group.addoption("--smoke", action="store_true", help="tiny shapes; fails if a provider that is installed raises")
    group.addoption(
        "--record", type=Path, nargs="?", const=rows.RESULTS, metavar="FOLDER",
        help="append the rows to FOLDER/<date>-<device>/<op>.jsonl (FOLDER: bench/results)",
    )  # fmt: skip


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """`pytest bench` takes every file here; those without a benchmark have nothing to collect."""
    if file_path.suffix != ".py" or file_path.stem in ("conftest", "__init__") or parent.session.isinitpath(file_path):
        return None
    return pytest.Module.from_parent(parent, path=file_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen_providers(metafunc.config)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", metafunc.module.OP.cases(extent(metafunc.config)), ids=str)


def extent(config: pytest.Config) -> Extent:
    return "smoke" if config.getoption("smoke") else "all" if config.getoption("all") else "usual"


def chosen_providers(config: pytest.Config) -> Collection[str]:
    option = config.getoption("providers")
    return PROVIDERS if option == "all" else peers.named(PROVIDERS, option)


@pytest.fixture(scope="session")
def slow(pytestconfig: pytest.Config) -> Slow:
    return Slow(pytestconfig.getoption("slow"))


@pytest.fixture
def measure(
    pytestconfig: pytest.Config, benchmark: BenchmarkFixture, slow: Slow, record: Callable[[list[Record]], None]
) -> Callable[[Op, Case], None]:
    """Runs one case of an op, and keeps what came of it."""

    def run(op: Op, case: Case) -> None:
        cap, most = pytestconfig.getoption("cap"), pytestconfig.getoption("most")
        chosen = chosen_providers(pytestconfig)
        contest = Contest(op, case, chosen, cap=cap, most=most, absent=slow.absent(op, case))
        contest.run(benchmark)
        records = contest.records()
        slow.learn(op, case, records)
        record(records)
        expect(pytestconfig.getoption("smoke"), contest.absent, contest.broken)

    return run


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[list[Record]], None]:
    """Hands the records of a case to the terminal, to pytest-benchmark's JSON and, with --record, to the results."""

    def keep(records: list[Record]) -> None:
        request.node.user_properties += [("record", asdict(record)) for record in records]
        request.getfixturevalue("benchmark").extra_info["records"] = [asdict(record) for record in records]
        folder = request.config.getoption("record")
        if folder is not None:
            rows.append(records, folder)

    return keep


class Table:
    """Prints a case as soon as it is done: one line for each provider, slowest last, and the reasons below."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        records: list[Any] = [value for name, value in report.user_properties if name == "record"]
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.when != "call" or not records or terminal is None:
            return
        counted = " ".join(f"{axis}={n}" for axis, n in records[0]["shape"].items() if axis in rows.COUNTED)
        terminal.write_line(f"\n{report.nodeid.partition('::')[2]}  {counted}")
        for row in (r for r in records if "eager" in r):
            errors = "".join(f"{name:>6} {error:.1e}" for name, error in row["errors"].items())
            terminal.write_line(f"  {row['case']:32}{row['provider']:18}{errors}")
        if any("ms_median" in r for r in records):
            terminal.write_line(f"  {'':18}{heading(records[0])}")
        for row in sorted((r for r in records if "ms_median" in r), key=lambda row: row["ms_median"]):
            terminal.write_line(f"  {row['provider']:18}{line(row)}")
        for absence in (r for r in records if "reason" in r):
            terminal.write_line(f"  {absence['provider']:18}no row: {absence['reason']}")


RATES = {"gflops": "GFLOP/s", "gb_per_s": "GB/s", "tokens_per_s": "tokens/s"}


def rate_of(row: dict[str, Any]) -> str:
    """The rate that a row has; an absence has none."""
    return next((name for name in RATES if row.get(name) is not None), "gb_per_s")


def heading(row: dict[str, Any]) -> str:
    rate = RATES[rate_of(row)]
    return (
        f"{'ms median':>10}{'min':>10}{'rounds':>8}{rate:>9}{'x floor':>9}{'x eager':>9}{'MiB extra':>11}{'others':>8}"
    )


def line(row: dict[str, Any]) -> str:
    rate = row[rate_of(row)]
    eager = f"{row['eager_factor']:9.2f}" if row["eager_factor"] is not None else f"{'':9}"
    extra = f"{row['peak_mib']:11.1f}" if row["peak_mib"] is not None else f"{'':11}"
    others = f"{row['other_cores']:8.2f}" if row["other_cores"] is not None else ""
    times = f"{row['ms_median']:10.1f}{row['ms_min']:10.1f}{row['rounds']:8}{rate:9.{1 if rate >= 10 else 2}f}"
    outside = f"  {row['outside']:.1%} outside" if row.get("outside") is not None else ""
    return f"{times}{1 / row['floor_share']:9.3f}{eager}{extra}{others}{outside}"


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Table(config), "bench-table")
