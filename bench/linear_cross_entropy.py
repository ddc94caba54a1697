"""Linear cross-entropy, forward and backward, dx and dw: fastft, its peers, and the floor in the same run.

The floor is what nobody who calls the same GEMMs can beat: the three bare GEMMs of the M supervised rows
(z = x w^T, dx = dz w, dw = dz^T x) into buffers that exist already, plus one in-place pass over their (M, V) logits.

    python -m pytest bench/linear_cross_entropy.py -k "smollm2 and bf16 and ignored85" --providers fastft,eager
"""

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench import checks, peers
from bench.peers import LINEAR_CROSS_ENTROPY, Loss
from bench.rows import Absence, Record, Row, device_facts
from bench.shapes import DTYPES, HEADS, IGNORE_INDEX, SMOKE_HEADS, Head, Inputs, head_cases
from bench.timing import Race

OP = "linear_cross_entropy"
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
TOO_SLOW = {("cpu", "gemma3", "torch-default"): "a call takes over 2 minutes on two cores"}
Slow = dict[tuple[str, str, str, str], str]  # (device, case, dtype, provider) -> why its other shares are left out


def floor(inputs: Inputs) -> Callable[[], None]:
    """The bare GEMMs and one pass, every buffer allocated and touched beforehand."""
    x = inputs.x.detach()[inputs.y != IGNORE_INDEX]
    w = inputs.w.detach()
    z, dx, dw = (x.new_empty(shape).fill_(0) for shape in ((len(x), len(w)), x.shape, w.shape))

    def call() -> None:
        torch.mm(x, w.t(), out=z)
        z.mul_(0.5)
        torch.mm(z, w, out=dx)
        torch.mm(z.t(), x, out=dw)

    return call


def step(loss: Loss, inputs: Inputs) -> Callable[[], Tensor]:
    """Forward and backward of the head in one training step; the gradients are left in `inputs`."""

    def call() -> Tensor:
        value = loss(inputs.x, inputs.w, inputs.y)
        value.backward()
        return value.detach()

    return call


def outputs(loss: Loss, inputs: Inputs) -> dict[str, Tensor]:
    inputs.reset()
    value = step(loss, inputs)()
    return {"loss": value, "dx": inputs.gradients[0], "dw": inputs.gradients[1]}


class Contest:
    """One case: the race of those who pass both checks, and the reason of everybody else.

    Args:
        case: what is measured.
        chosen: names from `peers.LINEAR_CROSS_ENTROPY`; the floor always takes part.
        cap, most: seconds and rounds for each provider, see `Race`.
        absent: reasons of providers left out from the start.
    """

    def __init__(
        self, case: Head, chosen: Collection[str], *, cap: float, most: int, absent: dict[str, str] | None = None
    ) -> None:
        self.case = case
        self.absent = dict(absent or {})
        self.errors: dict[str, dict[str, float]] = {}
        self.deviations: dict[str, float] = {}
        wanted = {n: p for n, p in LINEAR_CROSS_ENTROPY.items() if n in chosen and n not in self.absent}
        losses, reasons = peers.load(wanted, case.device)
        self.absent |= reasons
        losses = {name: loss for name, loss in losses.items() if self._right(name, loss)}
        self.inputs = case.inputs()
        calls: dict[str, Callable[[], Any]] = {"floor": floor(self.inputs)}
        calls |= {name: step(loss, self.inputs) for name, loss in losses.items()}
        self.race = Race(case.device, calls, self.inputs.reset, case.eager_bytes, cap, most)
        self.race.first("floor")
        eager: tuple[Tensor, ...] = ()
        for name in losses:
            if self._first(name, eager) and name == "eager":
                eager = self.inputs.gradients

    def _right(self, name: str, loss: Loss) -> bool:
        """The check against fp64 at the reduced size."""
        reduced = self.case.reduced()
        eager = peers.eager(self.case.device)
        truth = outputs(eager, reduced.inputs(torch.float64))
        bound = checks.relative_errors(outputs(eager, reduced.inputs()), truth)
        try:
            self.errors[name] = checks.relative_errors(outputs(loss, reduced.inputs()), truth)
            reason = checks.refusal(self.errors[name], bound, DTYPES[self.case.dtype])
        except Exception as error:  # whatever a peer raises
            reason = summary(error)
        if reason is not None:
            self.absent[name] = reason
        return reason is None

    def _first(self, name: str, eager: tuple[Tensor, ...]) -> bool:
        """Round 0, and the check at full size against eager's gradients, where eager takes part."""
        try:
            if LINEAR_CROSS_ENTROPY[name].compiled:
                self.race.calls[name]()
            self.race.first(name)
        except Exception as error:  # whatever a peer raises, out of memory too
            self.absent[name] = summary(error)
            return False
        if eager:
            apart = checks.deviation(self.inputs.gradients, eager)
            self.deviations[name] = apart
            if not apart <= checks.DEVIATION[DTYPES[self.case.dtype]]:
                self.absent[name] = f"its gradients at full size are {apart:.2e} away from eager's"
                self.race.withdraw(name)
                return False
        return True

    def run(self, benchmark: BenchmarkFixture) -> None:
        """All rounds. pytest-benchmark's own clock is on fastft (on the floor where fastft has no row); those
        before it in a round's order run in its set-up, those after it in its tear-down."""
        race, number = self.race, 0
        subject = "fastft" if "fastft" in race.laps else "floor"

        def before() -> None:
            nonlocal number
            number += 1
            order = race.order(number)
            for name in order[: order.index(subject)]:
                race.turn(name, number)
            race.prepare(subject)

        def after() -> None:
            order = race.order(number)
            for name in order[order.index(subject) + 1 :]:
                race.turn(name, number)

        rounds = max(1, race.rounds(subject))
        benchmark.pedantic(lambda: race.lap(subject, number), setup=before, teardown=after, rounds=rounds)
        self.inputs.reset()

    def records(self) -> list[Record]:
        """A row for everyone in the race, an absence for everyone else."""
        case, race = self.case, self.race
        where = {"op": OP, "case": case.name, "shape": case.shape, "dtype": case.dtype, "ignored": case.ignored}
        where |= device_facts(case.device)
        made: list[Record] = []
        for name, peak in race.peaks.items():
            numbers = race.numbers(name)
            extra = None if peak is None or name == "floor" else max(0, peak - case.gradient_bytes) / 2**20
            made.append(
                Row(
                    provider=name,
                    **where,
                    **numbers,
                    gflops=case.flops / numbers["ms_median"] / 1e6,
                    peak_mib=extra,
                    errors=self.errors.get(name, {}),
                    deviation=self.deviations.get(name),
                )
            )
        return made + [Absence(provider=name, **where, reason=reason) for name, reason in self.absent.items()]


def summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen_providers(metafunc.config)
    smoke = metafunc.config.getoption("smoke")
    heads = {device: SMOKE_HEADS if smoke else HEADS[device] for device in DEVICES}
    metafunc.parametrize("case", head_cases(heads), ids=str)


def chosen_providers(config: pytest.Config) -> Collection[str]:
    option = config.getoption("providers")
    return LINEAR_CROSS_ENTROPY if option == "all" else peers.named(LINEAR_CROSS_ENTROPY, option)


@pytest.fixture(scope="session")
def slow() -> Slow:
    return {}


@pytest.mark.filterwarnings("ignore")
def test_linear_cross_entropy(
    case: Head,
    slow: Slow,
    pytestconfig: pytest.Config,
    benchmark: BenchmarkFixture,
    record: Callable[[list[Record]], None],
) -> None:
    option = pytestconfig.getoption
    here = (case.device, case.name, case.dtype)
    absent = {name: reason for (*place, name), reason in slow.items() if tuple(place) == here}
    absent |= {name: reason for (*place, name), reason in TOO_SLOW.items() if tuple(place) == here[:2]}
    chosen = chosen_providers(pytestconfig)
    contest = Contest(case, chosen, cap=option("cap"), most=option("most"), absent=absent)
    contest.run(benchmark)
    records = contest.records()
    for row in records:
        if isinstance(row, Row) and row.ms_min > 1e3 * option("slow") and dense_peer(row.provider):
            slow[(*here, row.provider)] = (
                f"took {row.ms_min / 1e3:.0f} s a call at {row.ignored:.0%} ignored, and its cost does not depend on "
                "that share"
            )
    record(records)


def dense_peer(name: str) -> bool:
    """Whether a peer costs the same whatever is ignored; eager, the yardstick, is never left out for it."""
    return name in LINEAR_CROSS_ENTROPY and name != "eager" and LINEAR_CROSS_ENTROPY[name].dense
