"""Trainers by turns: a process for each, one step each a round, and what becomes of it as rows.

A process of its own gives each trainer its own peak memory; that all of them are there at once gives ratios within
rounds. The floor runs in fastft's process, on the same model and the same batches.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from bench.contest import Contest, summary
from bench.rows import Absence, Record, Row, device_facts
from bench.timing import Race, touch
from bench.trainers import CHECKED, END, STEP, Count, Job, Stride, serve

TOLERANCE = {"fp32": (2e-5, 2e-4), "bf16": (5e-3, 1e-2)}  # of the losses of the first steps, relative
PATIENCE = 600.0  # seconds for one step, or for getting ready
LEAST = 2  # rounds


@dataclass(frozen=True)
class Match:
    """One case: a job, and how it is called. `dtype` is that of the matmuls; weights are fp32."""

    name: str
    job: Job
    vocabulary: int
    peers: tuple[str, ...]

    @property
    def dtype(self) -> str:
        return "bf16" if self.job.bf16 else "fp32"


class Process:
    """One trainer; `counts` are of its steps.

    Raises:
        RuntimeError: what went wrong there.
    """

    def __init__(self, provider: str, job: Job, folder: Path) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, provider, job, folder), daemon=True)
        self.process.start()
        theirs.close()
        self.strides: list[Stride] = []
        self.counts: list[Count] = []

    def ready(self) -> None:
        self.counts = self._answer()

    def step(self, number: int) -> Stride:
        """The next one; whose number it is, the process knows."""
        self.strides.append(self.ask(STEP))
        return self.strides[-1]

    def ask(self, word: str | int) -> Stride:
        self.connection.send(word)
        stride: Stride = self._answer()
        return stride

    def _answer(self) -> Any:
        if not self.connection.poll(PATIENCE):
            raise RuntimeError(f"no answer in {PATIENCE:g} s")
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"its process ended with exit code {self.process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(END)
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@dataclass
class Relay(Race):
    """A race of processes: `calls` take the number of a step, and their laps are those the processes tell."""

    together: int = LEAST  # rounds of everybody
    fresh: dict[str, int] = field(default_factory=dict)  # bytes that a step takes beyond what is held between steps

    def first(self, name: str) -> Stride:
        stride: Stride = self.calls[name](CHECKED - 1)
        self.laps[name], self.fresh[name] = {0: stride.lap}, stride.fresh
        self.peaks[name] = None
        return stride

    def rounds(self, name: str) -> int:
        return self.together

    def prepare(self, name: str) -> None:
        touch(self.fresh[name], self.device)

    def lap(self, name: str, number: int) -> None:
        self.laps[name][number] = self.calls[name](number + CHECKED - 1).lap


class TrainerContest(Contest):
    """One match: processes, the check of their losses, and the race of those who pass.

    Args:
        match: on which job.
        chosen: names from `match.peers`; fastft always takes part, and the floor in its process.
        cap, most: seconds and rounds for each; at least `LEAST` rounds, if `most` is not less.

    Raises:
        RuntimeError: fastft failed, or its losses are not transformers'.
    """

    def __init__(self, match: Match, chosen: Collection[str], *, cap: float, most: int) -> None:
        self.match, self.absent, self.broken = match, dict[str, str](), list[str]()
        self.errors: dict[str, dict[str, float]] = {}
        self.inputs = Nothing()
        self.processes: dict[str, Process] = {}
        self.folder = tempfile.TemporaryDirectory()
        names = [name for name in match.peers if name in chosen or name == "fastft"]
        for name in names:
            self.processes[name] = Process(name, match.job, Path(self.folder.name, name))
        for name in names:
            self._try(name, self.processes[name].ready)
        calls: dict[str, Callable[[int], Stride]] = {}
        for name, process in self.processes.items():
            calls[name] = process.step
        calls["floor"] = self.processes["fastft"].ask
        self.race = Relay("cpu", calls, lambda: None, cap=cap, most=most)
        for name in list(self.processes):
            self._try(name, partial(self._check, name))
        self.race.first("floor")
        slowest = max(laps[0].seconds for laps in self.race.laps.values())
        self.race.together = min(most, max(LEAST, int(cap / slowest)))

    def _try(self, name: str, do: Callable[[], object]) -> None:
        """A provider that fails is out, for the reason that it gives."""
        try:
            do()
        except Exception as error:  # whatever a trainer raises
            self.absent[name] = str(error) if type(error) is RuntimeError else summary(error)
            self.broken.append(name)
            self.processes.pop(name).end()
            if name == "fastft":
                self.close()
                raise RuntimeError(f"fastft: {self.absent[name]}") from error

    def _check(self, name: str) -> None:
        """The first steps' losses against transformers': the second one stands for gradient, clipping and optimizer."""
        process = self.processes[name]
        process.step(0)
        self.race.first(name)
        like = self.processes.get("transformers", process)
        if process.counts and [c.learned for c in process.counts] != [c.learned for c in like.counts]:
            raise RuntimeError("it learns other tokens than transformers")
        found = {}
        for number, bound in enumerate(TOLERANCE[self.match.dtype]):
            own, truth = process.strides[number].loss, like.strides[number].loss
            assert own is not None
            assert truth is not None
            found[f"loss of step {number + 1}"] = error = abs(own - truth) / abs(truth)
            if not error <= bound:
                self.race.withdraw(name)
                raise RuntimeError(f"its loss of step {number + 1} is {own:.6g}, transformers' is {truth:.6g}")
        self.errors[name] = found

    def run(self, benchmark: BenchmarkFixture) -> None:
        """As any contest; then the processes end."""
        try:
            super().run(benchmark)
        finally:
            self.close()

    def close(self) -> None:
        for process in self.processes.values():
            process.end()
        self.folder.cleanup()

    def records(self) -> list[Record]:
        match, job, race = self.match, self.match.job, self.race
        counts = self.processes["fastft"].counts
        timed = {name: race.counted(name) for name in race.laps}
        shape = {"B": job.rows, "L": job.length, "V": match.vocabulary}
        shape["M"] = round(statistics.mean(count.learned for count in counts))
        ignored = 1 - sum(count.learned for count in counts) / sum(count.tokens for count in counts)
        where: dict[str, Any] = {"op": "trainer", "case": match.name, "shape": shape, "dtype": match.dtype}
        where |= {"ignored": round(ignored, 2), **device_facts("cpu")}
        made: list[Record] = []
        for name, rounds in timed.items():
            numbers = race.numbers(name)
            tokens = [counts[number + CHECKED - 1].tokens for number in rounds]
            strides = [] if name == "floor" else self.processes[name].strides
            laps = [strides[number + CHECKED - 1] for number in rounds] if strides else []
            outside = [1 - stride.inside / stride.lap.seconds for stride in laps if stride.inside is not None]
            made.append(
                Row(
                    provider=name,
                    **where,
                    **numbers | {"eager_factor": race.ratio("transformers", name)},
                    gflops=None,
                    peak_mib=max(stride.peak for stride in strides) / 2**20 if strides else None,
                    errors=self.errors.get(name, {}),
                    deviation=None,
                    tokens_per_s=statistics.median(
                        1e3 * n / ms for n, ms in zip(tokens, numbers["samples_ms"], strict=True)
                    ),
                    outside=statistics.median(outside) if outside else None,
                )
            )
        return made + [Absence(provider=name, **where, reason=reason) for name, reason in self.absent.items()]


class Nothing:
    """A trainer's inputs are its own."""

    def reset(self) -> None:
        pass
