"""What time grows with: one axis of a head's or a table's step grows, the others rest; and the head on P processes.

head-N, head-M, head-V, head-D   linear cross-entropy, forward and backward
table-U      an embedding table's training step: the batch grows, and with it the rows it touches; the table does not
table-V      the table grows; the batch reads the same rows
head-P       the head's step on 1 and 2 processes, see bench/processes.py

The report fits a power law to each line: fastft's time is to grow with M and U, not with N and not with a table's V.
Every row passes the same check as elsewhere before it is timed, with the floor in the same run.

    python -m pytest bench/scaling.py -k head-N
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import embedding, linear_cross_entropy
from bench.cases import Case, Head
from bench.contest import DEVICES, Op, expect
from bench.processes import Part, measured
from bench.rows import SCALING, Record
from bench.shapes import Extent, head_series, table_series

SHOWN = ("eager", "sparse-adam", "fastft")
HEAD, TABLE = (
    replace(op, name=SCALING, peers={name: peer for name, peer in op.peers.items() if name in SHOWN})
    for op in (linear_cross_entropy.OP, embedding.OP)
)


class OP:
    """What bench/conftest.py asks a bench file for."""

    @staticmethod
    def cases(extent: Extent) -> list[Case]:
        return [case for device in DEVICES for make in (head_series, table_series) for case in make(device, extent)]


@pytest.mark.filterwarnings("ignore")
def test_scaling(case: Case, measure: Callable[[Op, Case], None]) -> None:
    measure(HEAD if isinstance(case, Head) else TABLE, case)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("P", [1, 2])
def test_processes(
    P: int, benchmark: BenchmarkFixture, pytestconfig: pytest.Config, record: Callable[[list[Record]], None]
) -> None:
    smoke = pytestconfig.getoption("smoke")
    N, D, V = (128, 32, 256) if smoke else (4096, 256, 16384)
    case = Part("head-P", N, D, V, "fp32", 0.875, P=P)
    made, absent, broken = benchmark.pedantic(measured, (case, pytestconfig.getoption("most")), rounds=1)  # type: ignore[no-untyped-call]
    record(made)
    expect(smoke, absent, broken)
