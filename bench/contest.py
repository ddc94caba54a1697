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
from bench.peers import Peer, Provider
from bench.rows import Absence, Record, Row, device_facts
from bench.shapes import Extent
from bench.timing import Race

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@dataclass(frozen=True)
class Op:
    """What a bench file says about its op.

    Args:
        name: of the op, and of the file of its rows.
        peers: who does it; "eager" is among them.
        cases: what is measured, given how much of it.
        floor: from a case's inputs to the work that nobody can do without, buffers allocated and touched beforehand.
        step: from a provider and inputs to one training step, which leaves in the inputs what is compared; of a loss
            one forward and backward, which returns the loss and leaves the gradients. Each call may go on from the
            state that the one before it left.
        too_slow: (device, case, provider) -> why it is left out.
        race: by which rules.
    """

    name: str
    peers: Mapping[str, Peer]
    cases: Callable[[Extent], Sequence[Case]]
    floor: Callable[[Any], Callable[[], object]]
    step: Callable[[Provider, Any], Callable[[], Tensor]]
    too_slow: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    race: type[Race] = Race

    def outputs(self, provider: Provider, case: Case, upcast: torch.dtype | None = None) -> dict[str, Tensor]:
        """What is checked against fp64, by name: loss and gradients."""
        inputs = case.inputs(upcast)
        return {"loss": self.step(provider, inputs)(), **inputs.left}


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
        self.broken: list[str] = []  # of the absent, those that were there and raised
        self.errors: dict[str, dict[str, float]] = {}
        self.deviations: dict[str, float] = {}
        wanted = {n: p for n, p in op.peers.items() if n in chosen and n not in self.absent}
        self.truths: dict[str, tuple[dict[str, Tensor], dict[str, float]]] = {}
        self.expected: dict[str, list[Tensor]] = {}  # of the peers that others are to equal, at full size
        providers, reasons = peers.load(wanted, case.device)
        self.absent |= reasons
        providers = {name: provider for name, provider in providers.items() if self._right(name, provider)}
        self.inputs = case.inputs()
        calls: dict[str, Callable[[], Any]] = {"floor": op.floor(self.inputs)}
        calls |= {name: op.step(provider, self.inputs) for name, provider in providers.items()}
        self.race = op.race(case.device, calls, self.inputs.reset, case.eager_bytes, cap, most)
        self.race.first("floor")
        models = {peer.like for peer in op.peers.values()}
        for name in providers:
            if self._first(name) and name in models:
                self.expected[name] = list(self.inputs.left.values())

    def _truth(self, name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What peer `name` makes of the reduced case in fp64, and its own errors."""
        if name not in self.truths:
            reduced, peer = self.case.reduced(), self.op.peers[name].load(self.case.device)
            truth = self.op.outputs(peer, reduced, torch.float64)
            self.truths[name] = truth, checks.relative_errors(self.op.outputs(peer, reduced), truth)
        return self.truths[name]

    def _right(self, name: str, provider: Provider) -> bool:
        """The check against fp64 at the reduced size."""
        like = self.op.peers[name].like
        truth, bound = self._truth(like)
        try:
            self.errors[name] = checks.relative_errors(self.op.outputs(provider, self.case.reduced()), truth)
            reason = checks.refusal(self.errors[name], bound, DTYPES[self.case.dtype], like)
        except Exception as error:  # whatever a peer raises
            reason = summary(error)
            self.broken.append(name)
        if reason is not None:
            self.absent[name] = reason
        return reason is None

    def _first(self, name: str) -> bool:
        """Round 0, and the check at full size against eager, or whom else it is to equal, where that takes part."""
        peer = self.op.peers[name]
        try:
            for _ in range(self.case.warm_up or peer.compiled):
                self.inputs.reset()
                self.race.calls[name]()
            self.race.first(name)
        except Exception as error:  # whatever a peer raises, out of memory too
            self.absent[name] = summary(error)
            self.broken.append(name)
            return False
        if peer.like in self.expected:
            apart = checks.deviation(list(self.inputs.left.values()), self.expected[peer.like])
            self.deviations[name] = apart
            if not apart <= checks.DEVIATION[DTYPES[self.case.dtype]]:
                what = ", ".join(self.inputs.left)
                self.absent[name] = f"its {what} at full size: {apart:.2e} away from {peer.like}'s"
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


def expect(runs: bool, absent: Mapping[str, str], broken: Collection[str]) -> None:
    """Raises `RuntimeError` where `runs` is asked for and a provider that is installed raised."""
    if runs and broken:
        raise RuntimeError("providers do not run: " + "; ".join(f"{name}: {absent[name]}" for name in broken))


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
