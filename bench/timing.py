"""How a number is made.

A ratio of two timings is only worth something if both were taken under the same conditions, and on a shared machine
conditions drift by tens of per cent within a minute. So the providers of one case run by turns: a round calls each of
them once, rounds repeat, and the order rotates from round to round so that nobody always follows the same neighbour.

* **Clock.** One call is forward and backward of one whole step, gradients included, starting from `grad = None`: what
  a training step pays, page faults of fresh buffers too. Gradients of the previous call are freed off the clock. CPU:
  wall clock. CUDA: events on the current stream, after a synchronisation and a write of 256 MiB that flushes the L2
  cache. On the CPU the other providers' turns do the same to the caches.
* **Memory that is there.** A virtual machine may have given its free memory back to the host, and then a fresh page
  costs several times as much as usual, at the host's whim. So before each lap as much memory as the provider will take
  (in round 0: as eager would take) is touched and freed. What stays on the clock is the kernel handing out pages, as
  on any machine.
* **First call.** Round 0 warms up, gives the peak memory and the output that is compared with eager's, and tells how
  long a call takes. Its time is dropped where a provider gets a later round. A provider whose call takes longer than
  the cap gets no later round; then round 0 is its sample, which for calls of seconds is a warm one in all but name.
  What is compiled gets one call before round 0.
* **Rounds.** Each provider gets `cap / first call` rounds, at most `most`. The steady ones, the floor and fastft, get
  at least three, or two where one call takes longer than the cap. The slower ones leave the race earlier.
* **Disturbance.** On Linux each lap knows how many cores other processes had meanwhile. Laps with more than a tenth
  of a core are left out where quiet ones remain; a row says what was left in it (`other_cores`). The choice looks at
  that number only, never at the time.
* **Ratios.** Share of the floor, and the factor over eager, are medians of the ratios *within rounds*, over rounds
  that both took part in. They need not equal the ratio of the two medians in the table.
* **Memory.** CUDA: the allocator's peak above what was allocated before the call. CPU: the process's peak resident
  size above what was resident before it (free heap pages are returned, then the kernel's high-water mark is reset).
  The gradients' own bytes are subtracted by the caller. Linux only; elsewhere there is no number.
"""

import gc
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastft.memory import CLEAR_REFS, memory_now, peak_memory, reset_peak_memory

L2_FLUSH_BYTES = 256 * 2**20


class Lap(NamedTuple):
    seconds: float
    others: float | None  # processor seconds that other processes, or other guests of the host, had meanwhile

    @property
    def quiet(self) -> bool:
        """Nobody else used a tenth of a core; 30 ms is what the kernel's counters cannot tell from nothing."""
        return self.others is None or self.others <= max(0.1 * self.seconds, 0.03)


class Clock:
    """`clock(call)` is `(lap, what call returned)`."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=device) if self.cuda else None

    def __call__(self, call: Callable[[], Any]) -> tuple[Lap, Any]:
        if self.flush is None:
            others = busy_others()
            start = time.perf_counter()
            result = call()
            seconds = time.perf_counter() - start
            return Lap(seconds, None if others is None else max(0.0, (busy_others() or 0.0) - others)), result
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        torch.cuda.synchronize()
        begin.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
        return Lap(begin.elapsed_time(end) / 1e3, None), result


def busy_others() -> float | None:
    """Processor seconds spent since boot by everybody but this process, stolen time included; Linux only."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


@dataclass
class Peak:
    """Bytes above what was in use when the block began; None where they cannot be measured."""

    bytes: int | None = None


@contextmanager
def peak_of(device: str) -> Iterator[Peak]:
    """Peak memory of the block, beyond what was in use before it."""
    peak, on = Peak(), torch.device(device)
    gc.collect()
    if on.type == "cpu" and not CLEAR_REFS.exists():
        yield peak
        return
    synchronize(on)
    before = memory_now(on)
    reset_peak_memory(on)
    yield peak
    synchronize(on)
    peak.bytes = max(0, peak_memory(on) - before)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def touch(size: int, device: str) -> None:
    """Makes sure that the next `size` bytes of the CPU's memory a provider asks for are backed by the host. In huge
    pages, so that both kinds are: a host takes back whole free blocks, and those serve huge pages first. Linux only."""
    if size <= 0 or device.startswith("cuda") or sys.platform != "linux":
        return
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
    del view
    memory.close()


@dataclass
class Race:
    """Times `calls` by turns; see the module's text.

    Args:
        device: where they run.
        calls: one step of each provider.
        reset: run before each call, off the clock.
        ballast: bytes to touch before round 0; later rounds touch the provider's own peak.
        cap: seconds a provider may spend in rounds after round 0.
        most: largest number of those rounds.
        steady: providers that get two or three rounds whatever they cost.
    """

    device: str
    calls: Mapping[str, Callable[[], Any]]
    reset: Callable[[], None]
    ballast: int = 0
    cap: float = 3.0
    most: int = 15
    steady: tuple[str, ...] = ("floor", "fastft")
    laps: dict[str, dict[int, Lap]] = field(default_factory=dict)  # provider -> round -> lap
    peaks: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)

    def first(self, name: str) -> Any:
        """Round 0 of one provider, with its peak memory; returns what the call returned."""
        self.reset()
        touch(self.ballast, self.device)
        with peak_of(self.device) as peak:
            lap, result = self.clock(self.calls[name])
        self.laps[name] = {0: lap}
        self.peaks[name] = peak.bytes
        return result

    def rounds(self, name: str) -> int:
        """How many rounds after round 0 this provider takes part in."""
        seconds = self.laps[name][0].seconds
        least = (3 if seconds < self.cap else 2) if name in self.steady else 0
        return max(least, min(self.most, int(self.cap / seconds)))

    def turn(self, name: str, number: int) -> None:
        """One provider's turn in round `number`, if it still takes part."""
        if number <= self.rounds(name):
            self.prepare(name)
            self.lap(name, number)

    def prepare(self, name: str) -> None:
        """What comes before a lap, off the clock."""
        self.reset()
        touch(self.peaks[name] or 0, self.device)

    def lap(self, name: str, number: int) -> None:
        self.laps[name][number], _ = self.clock(self.calls[name])

    def order(self, number: int) -> list[str]:
        """Who runs when in round `number`."""
        names = list(self.laps)
        shift = number % len(names)
        return names[shift:] + names[:shift]

    def withdraw(self, name: str) -> None:
        """Takes a provider out of the race."""
        del self.laps[name], self.peaks[name]

    def counted(self, *names: str) -> list[int]:
        """The rounds that count for these providers: those all took part in, without round 0 if there is another,
        without the disturbed ones if there is a quiet one."""
        shared = sorted(set.intersection(*(set(self.laps[name]) for name in names)))
        warm = shared[1:] or shared
        return [r for r in warm if all(self.laps[name][r].quiet for name in names)] or warm

    def ratio(self, name: str, other: str) -> float | None:
        """`name`'s time over `other`'s, median over rounds; None where one of them is missing."""
        if name not in self.laps or other not in self.laps:
            return None
        laps = self.laps
        return statistics.median(laps[name][r].seconds / laps[other][r].seconds for r in self.counted(name, other))

    def numbers(self, name: str) -> dict[str, Any]:
        """The timing fields of a row."""
        laps = [self.laps[name][r] for r in self.counted(name)]
        samples = [1e3 * lap.seconds for lap in laps]
        known = laps[0].others is not None
        return {
            "ms_min": min(samples),
            "ms_median": statistics.median(samples),
            "rounds": len(samples),
            "samples_ms": samples,
            "other_cores": 1e3 * sum(lap.others or 0.0 for lap in laps) / sum(samples) if known else None,
            "floor_ms": 1e3 * statistics.median(self.laps["floor"][r].seconds for r in self.counted("floor")),
            "floor_share": self.ratio("floor", name),
            "eager_factor": self.ratio("eager", name),
        }
