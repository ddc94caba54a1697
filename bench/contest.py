"""One op's case: the race of those who pass both checks, and the reason of everybody else.

A bench file names its `Op` and hands each case to the fixture `measure` of bench/conftest.py; the rest is here.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench import checks, peers
from bench.cases import DTYPES, Case
from bench.peers import Loss, Peer
from bench.rows import Absence, Record, Row, device_facts
from bench.timing import Race

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@dataclass(frozen=True)
class Op:
    """What a bench file says about its op.

    Args:
        name: of the op, and of the file of its rows.
        peers: who does it; "eager" is among them.
        cases: what is measured; given whether it is a smoke run.
        floor: from a case's inputs to the work that nobody can do without, buffers allocated and touched beforehand.
        step: from a loss and inputs to one forward and backward, which returns the loss and leaves the gradients.
        too_slow: (device, case, provider) -> why it is left out.
    """

    name: str
    peers: Mapping[str, Peer]
    cases: Callable[[bool], Sequence[Case]]
    floor: Callable[[Any], Callable[[], object]]
    step: Callable[[Loss, Any], Callable[[], Tensor]]
    too_slow: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    def outputs(self, loss: Loss, case: Case, upcast: torch.dtype | None = None) -> dict[str, Tensor]:
        """Loss and gradients, by name."""
        inputs = case.inputs(upcast)
        return {"loss": self.step(loss, inputs)(), **inputs.gradients}


class Contest:
    """One case: the race of those who pass both checks, and the reason of everybody else.

    Args:
        op: what is done.
        case: on which inputs.
        chosen: names from `op.peers`; the floor always takes part.
        cap, most: seconds and rounds for each provider, see `Race`.
        absent: reasons of providers left out from the start.
    """

    def __init__(
        self,
        op: Op,
        case: Case,
        chosen: Collection[str],
        *,
        cap: float,
        most: int,
        absent: dict[str, str] | None = None,
    ) -> None:
        self.op = op
        self.case = case
        self.absent = dict(absent or {})
        self.errors: dict[str, dict[str, float]] = {}
        self.deviations: dict[str, float] = {}
        wanted = {n: p for n, p in op.peers.items() if n in chosen and n not in self.absent}
        losses, reasons = peers.load(wanted, case.device)
        self.absent |= reasons
        losses = {name: loss for name, loss in losses.items() if self._right(name, loss)}
        self.inputs = case.inputs()
        calls: dict[str, Callable[[], Any]] = {"floor": op.floor(self.inputs)}
        calls |= {name: op.step(loss, self.inputs) for name, loss in losses.items()}
        self.race = Race(case.device, calls, self.inputs.reset, case.eager_bytes, cap, most)
        self.race.first("floor")
        eager: list[Tensor] = []
        for name in losses:
            if self._first(name, eager) and name == "eager":
                eager = list(self.inputs.gradients.values())

    def _right(self, name: str, loss: Loss) -> bool:
        """The check against fp64 at the reduced size."""
        reduced = self.case.reduced()
        eager = self.op.peers["eager"].load(self.case.device)
        truth = self.op.outputs(eager, reduced, torch.float64)
        bound = checks.relative_errors(self.op.outputs(eager, reduced), truth)
        try:
            self.errors[name] = checks.relative_errors(self.op.outputs(loss, reduced), truth)
            reason = checks.refusal(self.errors[name], bound, DTYPES[self.case.dtype])
        except Exception as error:  # whatever a peer raises
            reason = summary(error)
        if reason is not None:
            self.absent[name] = reason
        return reason is None

    def _first(self, name: str, eager: Sequence[Tensor]) -> bool:
        """Round 0, and the check at full size against eager's gradients, where eager takes part."""
        try:
            if self.op.peers[name].compiled:
                self.inputs.reset()
                self.race.calls[name]()
            self.race.first(name)
        except Exception as error:  # whatever a peer raises, out of memory too
            self.absent[name] = summary(error)
            return False
        if eager:
            apart = checks.deviation(list(self.inputs.gradients.values()), eager)
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
        benchmark.pedantic(lambda: race.lap(subject, number), setup=before, teardown=after, rounds=rounds)  # type: ignore[no-untyped-call]
        self.inputs.reset()

    def records(self) -> list[Record]:
        """A row for everyone in the race, an absence for everyone else."""
        case, race = self.case, self.race
        where: dict[str, Any] = {"op": self.op.name, "case": case.name, "shape": case.shape}
        where |= {"dtype": case.dtype, "ignored": case.ignored, **device_facts(case.device)}
        made: list[Record] = []
        for name, peak in race.peaks.items():
            numbers = race.numbers(name)
            extra = None if peak is None or name == "floor" else max(0, peak - case.uncounted_bytes) / 2**20
            made.append(
                Row(
                    provider=name,
                    **where,
                    **numbers,
                    gflops=giga_per_second(case.flops, numbers["ms_median"]),
                    gb_per_s=giga_per_second(case.traffic, numbers["ms_median"]),
                    peak_mib=extra,
                    errors=self.errors.get(name, {}),
                    deviation=self.deviations.get(name),
                )
            )
        return made + [Absence(provider=name, **where, reason=reason) for name, reason in self.absent.items()]


def giga_per_second(work: int | None, ms: float) -> float | None:
    return None if work is None else work / ms / 1e6


def summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Slow:
    """Dense peers that took longer than `limit` seconds a call: one ignored share is enough of them."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.reasons: dict[tuple[str, ...], str] = {}  # (op, device, case, dtype, provider) -> reason

    def absent(self, op: Op, case: Case) -> dict[str, str]:
        """Who is left out of this case, and why."""
        here = (op.name, case.device, case.name, case.dtype)
        reasons = {name: reason for (*place, name), reason in self.reasons.items() if tuple(place) == here}
        too_slow = {
            n: reason for (device, c, n), reason in op.too_slow.items() if (device, c) == (case.device, case.name)
        }
        return reasons | too_slow

    def learn(self, op: Op, case: Case, records: Sequence[Record]) -> None:
        """Remembers who is to be left out of the case's other shares; eager, the yardstick, never is."""
        for row in records:
            dense = row.provider in op.peers and row.provider != "eager" and op.peers[row.provider].dense
            if isinstance(row, Row) and dense and row.ms_min > 1e3 * self.limit:
                self.reasons[op.name, case.device, case.name, case.dtype, row.provider] = (
                    f"took {row.ms_min / 1e3:.0f} s a call at {row.ignored:.0%} ignored, and its cost does not depend "
                    "on that share"
                )
