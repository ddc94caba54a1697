"""A race without pytest-benchmark, and what came of it; a benchmark as a user runs it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import Case
from bench.contest import Contest, Op
from bench.rows import Absence, Row

ROOT = Path(__file__).parents[2]
# For pytest in a process of its own: it is not one of those that share the tests.
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}


class Laps:
    """In place of the `benchmark` fixture, which one test can use once only."""

    def pedantic(
        self, target: Callable[[], None], setup: Callable[[], None], teardown: Callable[[], None], rounds: int
    ) -> None:
        for _ in range(rounds):
            setup()
            target()
            teardown()


def records(op: Op, case: Case, **options: Any) -> tuple[dict[str, Row], dict[str, str]]:
    """Rows by provider, and the reasons of those that have none."""
    contest = Contest(op, case, **{"chosen": op.peers, "cap": 0.01, "most": 3, **options})
    contest.run(Laps())  # type: ignore[arg-type]
    made = contest.records()
    timed = {record.provider: record for record in made if isinstance(record, Row)}
    return timed, {record.provider: record.reason for record in made if isinstance(record, Absence)}


def benchmarked(file: str, *options: str) -> str:
    """What `pytest bench/<file>.py` with these options prints; it must end well."""
    command = [sys.executable, "-m", "pytest", f"bench/{file}.py", "-q", "-p", "no:cacheprovider", "--benchmark-only"]
    done = subprocess.run([*command, *options], cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
