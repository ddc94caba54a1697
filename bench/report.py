"""The newest results as one page and two pictures: `python -m bench.report [folder]`.

Writes `report.md`, `<op>-time.png` and `<op>-memory.png` beside the rows, by default in the newest folder of
`bench/results/`.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from bench import plots
from bench.rows import ABSENT, RESULTS, Absence, Row, load

DISTURBED = 0.1  # cores other processes used
SUBJECT = "fastft"


def write(folder: Path) -> Path:
    """Makes page and pictures of a folder of rows; returns the page's path.

    Raises `FileNotFoundError` if the folder holds no rows.
    """
    files = sorted(path for path in folder.glob("*.jsonl") if path.stem != ABSENT)
    if not files:
        raise FileNotFoundError(f"{folder}: no rows here; make some with pytest bench/<op>.py --record")
    absent = load(folder / f"{ABSENT}.jsonl", Absence) if (folder / f"{ABSENT}.jsonl").exists() else []
    parts = []
    for path in files:
        rows = load(path, Row)
        plots.draw(rows, folder / f"{path.stem}-time.png", folder / f"{path.stem}-memory.png")
        parts += page(path.stem, rows, [absence for absence in absent if absence.op == path.stem])
    report = folder / "report.md"
    report.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return report


def page(op: str, rows: list[Row], absent: list[Absence]) -> list[str]:
    first = rows[0]
    commits = ", ".join(sorted({row.fastft for row in rows}))
    days = sorted({row.taken[:10] for row in rows})
    providers = ordered({row.provider for row in rows})
    cases = by_case(rows)
    return [
        f"# {op} on {first.device}",
        "",
        f"{first.driver}; torch {first.torch}; fastft {commits}; {days[0]} to {days[-1]}. How a number is made: "
        "`bench/timing.py`. A provider whose gradients are wrong has no row.",
        "",
        f"![time]({op}-time.png)",
        f"![memory]({op}-memory.png)",
        "",
        f"## {SUBJECT}",
        "",
        "`x floor`: time over the floor's. The other factors: how many times as fast as that provider. Memory is what "
        "a call takes beyond inputs and gradients.",
        "",
        *table(
            [*LABELS, "M", "ms", "x floor", *(f"vs {name}" for name in providers if name not in ("floor", SUBJECT)),
             "MiB", "eager's MiB"],
            (subject_cells(case, providers) for case in cases if SUBJECT in case),
        ),
        "## Time: median ms (multiple of the floor)",
        "",
        *table([*LABELS, *providers], ([*labels(case), *(time(case.get(p)) for p in providers)] for case in cases)),
        "## Memory beyond inputs and gradients: MiB",
        "",
        *table(
            [*LABELS, *(p for p in providers if p != "floor")],
            ([*labels(case), *(memory(case.get(p)) for p in providers if p != "floor")] for case in cases),
        ),
        "## Largest relative error of dx and dw against fp64, at the reduced size",
        "",
        *table(
            [*LABELS, *(p for p in providers if p != "floor")],
            ([*labels(case), *(error(case.get(p)) for p in providers if p != "floor")] for case in cases),
        ),
        *absences(absent),
        *disturbances(rows),
    ]  # fmt: skip


LABELS = ("case", "N x D x V", "dtype", "ignored")
Case = dict[str, Row]  # provider -> row


def ordered(providers: Iterable[str]) -> list[str]:
    """The floor, fastft, then the others by name, eager first."""
    rank = {"floor": 0, SUBJECT: 1, "eager": 2}
    return sorted(providers, key=lambda name: (rank.get(name, 3), name))


def by_case(rows: Iterable[Row]) -> list[Case]:
    cases: dict[tuple[object, ...], Case] = defaultdict(dict)
    for row in rows:
        cases[(row.device, row.case, str(row.shape), row.dtype, row.ignored)][row.provider] = row
    return list(cases.values())


def labels(case: Case) -> list[str]:
    row = next(iter(case.values()))
    size = " x ".join(str(row.shape[axis]) for axis in ("N", "D", "V"))
    return [row.case, size, row.dtype, f"{row.ignored:.0%}"]


def subject_cells(case: Case, providers: list[str]) -> list[str]:
    own = case[SUBJECT]
    cells = [*labels(case), str(own.shape["M"]), f"{own.ms_median:.1f}", f"{1 / own.floor_share:.2f}"]
    for name in providers:
        if name in ("floor", SUBJECT):
            continue
        other = case.get(name)
        factor = own.eager_factor if name == "eager" else other and other.ms_median / own.ms_median
        cells.append("" if factor is None else f"{factor:.2f}")
    return [*cells, memory(own), memory(case.get("eager"))]


def time(row: Row | None) -> str:
    return "" if row is None else f"{row.ms_median:.1f} ({1 / row.floor_share:.2f})"


def memory(row: Row | None) -> str:
    return "" if row is None or row.peak_mib is None else f"{row.peak_mib:.0f}"


def error(row: Row | None) -> str:
    return "" if row is None else f"{max(row.errors['dx'], row.errors['dw']):.1e}"


def table(head: list[str], lines: Iterable[list[str]]) -> list[str]:
    rule = ["---" if name in LABELS else "---:" for name in head]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)] + [""]


def absences(absent: list[Absence]) -> list[str]:
    if not absent:
        return []
    where = defaultdict(list)
    for absence in absent:
        place = f"{absence.case} {absence.dtype} {absence.ignored:.0%}"
        where[absence.provider, absence.reason].append(place)
    listed = [f"* **{p}**: {reason} ({', '.join(places)})" for (p, reason), places in where.items()]
    return ["## No row", "", *listed, ""]


def disturbances(rows: list[Row]) -> list[str]:
    loud = [row for row in rows if (row.other_cores or 0.0) > DISTURBED]
    if not loud:
        return []
    note = "Other processes used more than a tenth of a core during all of their samples; worth repeating:"
    listed = (f"{row.case} {row.dtype} {row.ignored:.0%} {row.provider} ({row.other_cores:.1f} cores)" for row in loud)
    return ["## Disturbed", "", note, "", *(f"* {text}" for text in listed), ""]


def newest(results: Path = RESULTS) -> Path:
    """The folder whose rows were written last; `FileNotFoundError` where there is none."""
    files = sorted(results.glob("*/*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{results}: no results yet; make some with pytest bench/<op>.py --record")
    return files[-1].parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="a folder of rows (default: the newest)")
    try:
        print(write(parser.parse_args().folder or newest()))
    except (FileNotFoundError, ValueError) as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    main()
