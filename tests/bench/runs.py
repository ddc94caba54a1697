"""A race without pytest-benchmark, and what came of it."""

import os
from collections.abc import Callable
from typing import Any

from bench.cases import Case
from bench.contest import Contest, Op
from bench.rows import Absence, Row

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
