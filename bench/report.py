"""The newest results as one page with pictures: `python -m bench.report [folder] [--strict]`.

Writes `report.md` and the pictures (`<op>-time.png`, `<op>-memory.png`, `scaling.png`, `accuracy.png`) beside the rows,
by default in the newest folder of `bench/results/`. Prints the fitted powers, and what became slower since the last run
of the same device; with `--strict` the exit code is 1 if anything did.
"""

import argparse
import sys
from pathlib import Path

from bench import compare, pages, plots
from bench.rows import ABSENT, ACCURACY, SCALING, Absence, Accuracy, Row, load, newest
from bench.trends import series_of


def write(folder: Path) -> Path:
    """Makes page and pictures of a folder of rows; returns the page's path.

    Raises `FileNotFoundError` if the folder holds no rows.
    """
    files = sorted(path for path in folder.glob("*.jsonl") if path.stem != ABSENT)
    if not files:
        raise FileNotFoundError(f"{folder}: no rows here; make some with pytest bench/<op>.py --record")
    missing = load(folder / f"{ABSENT}.jsonl", Absence) if (folder / f"{ABSENT}.jsonl").exists() else []
    older = compare.previous(folder)
    parts = compare.section(folder, older, compare.changes(folder, older)) if older is not None else []
    for path in files:
        absent = [absence for absence in missing if absence.op == path.stem]
        if path.stem == ACCURACY:
            records = load(path, Accuracy)
            plots.draw_errors(records, folder / "accuracy.png", f"{records[0].device}; torch {records[0].torch}")
            parts += pages.accuracy(records, absent)
            continue
        rows = load(path, Row)
        about = f"{rows[0].device}; torch {rows[0].torch}"
        if path.stem == SCALING:
            plots.draw_trends(series_of(rows), folder / "scaling.png", about)
            parts += pages.scaling(rows, absent)
            continue
        words = pages.WORDS.get(path.stem, pages.Words("the floor", "inputs"))
        time, memory = (folder / f"{path.stem}-{what}.png" for what in ("time", "memory"))
        about = f"{path.stem}, {words.call}; {about}"
        plots.draw(rows, time, memory, floor=words.floor, beyond=words.memory, about=about)
        parts += pages.page(path.stem, words, rows, absent)
    report = folder / "report.md"
    report.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return report


def summary(folder: Path) -> tuple[list[str], bool]:
    """Fitted powers and regressions in a line each, and whether there are regressions."""
    lines = []
    if (folder / f"{SCALING}.jsonl").exists():
        for one in series_of(load(folder / f"{SCALING}.jsonl", Row)):
            powers = ", ".join(f"{name} {power:.2f}" for name, power in one.slopes.items())
            lines.append(f"time ~ {one.axis}^b, {one.case}: {powers}")
    older = compare.previous(folder)
    if older is None:
        return [*lines, "no older run of this device"], False
    slower = [change for change in compare.changes(folder, older) if change.regressed]
    lines += [f"slower than {older.name}: {compare.sentence(change)}" for change in slower]
    return [*lines, *([] if slower else [f"nothing is slower than in {older.name}"])], bool(slower)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="a folder of rows (default: the newest)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if something became slower")
    options = parser.parse_args()
    try:
        folder = (options.folder or newest()).resolve()
        print(write(folder))
        lines, slower = summary(folder)
    except (FileNotFoundError, ValueError) as problem:
        parser.error(str(problem))
    print(*lines, sep="\n")
    sys.exit(1 if options.strict and slower else 0)


if __name__ == "__main__":
    main()
