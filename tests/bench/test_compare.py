"""A folder of results against an older one: which one that is, what a regression is, and what the exit code says."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import ALONE, ROOT, records

from bench import compare, report, rows
from bench.cases import Head
from bench.linear_cross_entropy import OP
from bench.rows import Row

pytestmark = pytest.mark.filterwarnings("ignore")

TINY = Head("tiny", 96, 48, 300, "fp32", 0.5)


@pytest.fixture(scope="module")
def pattern() -> Row:
    return records(OP, TINY, chosen=())[0]["floor"]


def write(folder: Path, pattern: Row, ms: dict[str, list[float]], case: str = "tiny", cores: float = 0.0) -> Path:
    """Rows of providers that took so long; among them the floor."""
    made = []
    for name, samples in ms.items():
        median, floor = (sorted(ms[who])[len(ms[who]) // 2] for who in (name, "floor"))
        times = {"ms_min": min(samples), "ms_median": median, "samples_ms": samples, "rounds": len(samples)}
        share = {"floor_ms": floor, "floor_share": floor / median}
        row = replace(pattern, provider=name, case=case, other_cores=cores, **times, **share, errors={"dx": 0.0})
        made.append(row)
    rows.append(made, folder.parent / "new")
    (today,) = (folder.parent / "new").iterdir()
    folder.mkdir(exist_ok=True)
    for path in today.iterdir():
        with (folder / path.name).open("a") as file:
            file.write(path.read_text())
        path.unlink()
    return folder


THEN = {"floor": [10.0, 10.5, 11.0], "fastft": [12.0, 12.5, 13.0], "eager": [50.0, 50.0, 50.0]}


@pytest.mark.parametrize(
    ("now", "regressed"),
    [
        ({"floor": [10.0, 10.5, 11.0], "fastft": [18.0, 18.5, 19.0]}, True),
        ({"floor": [20.0, 21.0, 22.0], "fastft": [24.0, 25.0, 26.0]}, False),  # the machine is slower, not fastft
        ({"floor": [10.0, 10.5, 11.0], "fastft": [12.5, 15.0, 19.0]}, False),  # the samples are as far apart
        ({"floor": [10.0, 10.5, 15.0], "fastft": [18.0, 18.5, 19.0]}, False),  # so are the floor's
        ({"floor": [10.0, 10.5, 11.0], "fastft": [8.0, 8.5, 9.0]}, False),
        ({"floor": [10.5, 10.5, 10.5], "fastft": [13.1, 13.1, 13.1]}, False),  # below 10 %
        ({"floor": [10.0, 10.5, 11.0], "fastft": [12.0, 12.5, 13.0], "eager": [90.0, 90.0, 90.0]}, False),
    ],
    ids=["slower", "machine", "spread", "floor's spread", "faster", "little", "a peer"],
)
def test_what_a_regression_is(now: dict[str, list[float]], regressed: bool, tmp_path: Path, pattern: Row) -> None:
    older = write(tmp_path / "2026-01-01-some-cpu", pattern, THEN)
    folder = write(tmp_path / "2026-01-02-some-cpu", pattern, now)
    (change,) = compare.changes(folder, older)
    assert change.row.provider == "fastft"
    assert change.regressed is regressed
    page = report.write(folder).read_text()
    assert page.startswith("# Since 2026-01-01-some-cpu\n")
    assert ("**Regressions: 1**" in page) is regressed
    assert ("**Regressions: none**" in page) is not regressed
    lines, slower = report.summary(folder)
    assert slower is regressed
    assert lines[-1].startswith("slower than 2026-01-01" if regressed else "nothing is slower than in 2026-01-01")


def test_a_case_that_only_one_run_has_is_not_compared(tmp_path: Path, pattern: Row) -> None:
    older = write(tmp_path / "2026-01-01-some-cpu", pattern, THEN)
    folder = write(tmp_path / "2026-01-02-some-cpu", pattern, THEN, case="another")
    assert compare.changes(folder, older) == []


def test_a_disturbed_run_is_said_to_be_one(tmp_path: Path, pattern: Row) -> None:
    older = write(tmp_path / "2026-01-01-some-cpu", pattern, THEN, cores=0.5)
    folder = write(tmp_path / "2026-01-02-some-cpu", pattern, THEN | {"fastft": [30.0, 30.0, 30.0]})
    (change,) = compare.changes(folder, older)
    assert "tiny (96 x 48 x 300 x 48, fp32, 50% ignored) fastft: 1.19 -> 2.86 x floor" in compare.sentence(change)
    assert compare.sentence(change).endswith("; one of the runs was disturbed")


def test_the_last_run_of_the_same_device(tmp_path: Path, pattern: Row) -> None:
    names = ("2026-01-01-some-cpu", "2026-01-02-some-cpu", "2026-01-03-other", "2026-01-05-some-cpu")
    for name in names:
        write(tmp_path / name, pattern, THEN)
    (tmp_path / "2026-01-03-some-cpu").mkdir()  # without rows
    assert compare.previous(tmp_path / "2026-01-04-some-cpu") == tmp_path / "2026-01-02-some-cpu"
    assert compare.previous(tmp_path / "2026-01-05-some-cpu") == tmp_path / "2026-01-02-some-cpu"
    assert compare.previous(tmp_path / "2026-01-03-other") is None


def test_the_exit_code_is_that_of_a_regression_if_asked(tmp_path: Path, pattern: Row) -> None:
    write(tmp_path / "2026-01-01-some-cpu", pattern, THEN)
    folder = write(tmp_path / "2026-01-02-some-cpu", pattern, THEN | {"fastft": [30.0, 30.0, 30.0]})
    for options, code in (([], 0), (["--strict"], 1)):
        command = [sys.executable, "-m", "bench.report", str(folder), *options]
        done = subprocess.run(command, cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        assert "slower than 2026-01-01-some-cpu: linear_cross_entropy tiny" in done.stdout
