"""A folder of results against the last one of the same device: what became slower by more than both runs' spread.

Compared is time over the floor's, which was measured in the same rounds: a machine that is slower today is so for both.
"""

from dataclasses import dataclass
from pathlib import Path

from bench.rows import ABSENT, ACCURACY, Row, key, load

OWN = "fastft"  # providers that are compared have it in their name
NOISE = 0.10  # a change below it is none, however steady both runs were
DISTURBED = 0.1  # cores other processes used
DATE = len("2026-01-01")


@dataclass(frozen=True)
class Change:
    """One case of one provider; times over the floor's, and the limits that each run's samples leave them."""

    row: Row
    then: float
    now: float
    highest_then: float
    lowest_now: float
    loud: bool  # one of the two runs was disturbed

    @property
    def ratio(self) -> float:
        return self.now / self.then

    @property
    def regressed(self) -> bool:
        return self.ratio > 1 + NOISE and self.lowest_now > self.highest_then


def previous(folder: Path) -> Path | None:
    """The newest older folder of rows beside it whose name, after the date, is the same; None if there is none."""
    alike = {path.parent for path in folder.parent.glob(f"????-??-??{folder.name[DATE:]}/*.jsonl")}
    return max((path for path in alike if path.name < folder.name), key=lambda path: path.name, default=None)


def changes(folder: Path, older: Path) -> list[Change]:
    """Of fastft's rows that both have, largest ratio first."""
    then, now = rows_of(older), rows_of(folder)
    made = []
    for place, row in now.items():
        before, floor = then.get(place), now.get(floor_of(place))
        floor_then = then.get(floor_of(place))
        if OWN not in row.provider or before is None or floor is None or floor_then is None:
            continue
        made.append(
            Change(
                row,
                1 / before.floor_share,
                1 / row.floor_share,
                max(before.samples_ms) / min(floor_then.samples_ms),
                min(row.samples_ms) / max(floor.samples_ms),
                any((each.other_cores or 0.0) > DISTURBED for each in (before, row, floor, floor_then)),
            )
        )
    return sorted(made, key=lambda change: -change.ratio)


def rows_of(folder: Path) -> dict[tuple[object, ...], Row]:
    files = sorted(path for path in folder.glob("*.jsonl") if path.stem not in (ABSENT, ACCURACY))
    return {key(row): row for path in files for row in load(path, Row)}


def floor_of(place: tuple[object, ...]) -> tuple[object, ...]:
    """The key of the floor at the same case."""
    return (*place[:-1], "floor")


def sentence(change: Change) -> str:
    row = change.row
    size = " x ".join(map(str, row.shape.values()))
    loud = "; one of the runs was disturbed" if change.loud else ""
    return (
        f"{row.op} {row.case} ({size}, {row.dtype}, {row.ignored:.0%} ignored) {row.provider}: {change.then:.2f} -> "
        f"{change.now:.2f} x floor, {change.ratio:.2f} times the time{loud}"
    )


def section(folder: Path, older: Path, found: list[Change]) -> list[str]:
    """Of the report: regressions, then what else changed by more than noise."""
    slower = [change for change in found if change.regressed]
    other = [c for c in found if not c.regressed and not 1 / (1 + NOISE) <= c.ratio <= 1 + NOISE]
    lines = [
        f"# Since {older.name}",
        "",
        f"Time over the floor's, {len(found)} rows of fastft that both runs have. A regression is slower by more than "
        f"{NOISE:.0%}, and by more than the samples of both runs are apart.",
        "",
        f"**Regressions: {len(slower) or 'none'}**",
        "",
        *(f"* {sentence(change)}" for change in slower),
        *([""] if slower else []),
    ]
    if other:
        lines += [f"Other changes of more than {NOISE:.0%}:", "", *(f"* {sentence(change)}" for change in other), ""]
    return lines
