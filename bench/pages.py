"""Rows as Markdown: a page for each op, one of what time grows with, and one of errors."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bench import plots
from bench.compare import DISTURBED
from bench.rows import COUNTED, Absence, Accuracy, Record, Row
from bench.trends import WANTED, series_of

SUBJECT = "fastft"


class Words(NamedTuple):
    """What an op's numbers mean."""

    floor: str
    memory: str  # beyond what; empty where a process is counted whole
    notes: str = ""
    call: str = "forward and backward"
    rated: str = "supervised rows"  # whose bytes GB/s are, or what is counted in a second
    yardstick: str = "eager"
    truth: str = "fp64, at the reduced size"


WORDS = {
    "linear_cross_entropy": Words("bare GEMMs of the supervised rows", "inputs and gradients"),
    "cross_entropy": Words(
        "a copy of the supervised rows",
        "inputs",
        " The gradient counts: a loss in place needs none. GB/s are one read and one write of the supervised rows over "
        "the time, and the floor is a copy of them. A gradient that is not in place also holds zeros for ignored rows: "
        "at 50, 85 and 95 % ignored that makes 1.5, 3.8 and 10.5 times the floor's bytes.",
    ),
    "embedding": Words(
        "a copy of the touched rows' bytes",
        "tables and optimizer state",
        " A call is a training step in mid-run: lookup, backward, optimizer. U rows are touched. GB/s are what exact "
        "AdamW of those rows must read or write (`bench/embedding.py`) over the time, and the floor is a copy of as "
        "many bytes. `sparse-adam` and `fastft-lazy` are another optimizer, which leaves untouched rows alone; "
        "providers called `rows-` train two rows of a frozen table.",
        call="one training step",
        rated="touched rows",
    ),
    "trainer": Words(
        "fastft's model on the same batches in a bare loop",
        "",
        " A call is a step of a trainer's own `train()`; tokens/s count no padding. What is beyond the floor is data, "
        "clipping, reports: everything outside model, loss and optimizer. In cases called `-packed` fastft packs the "
        "samples of a step into rows of L, transformers pads them to a row each, and `transformers-flat` is its "
        "DataCollatorWithFlattening. B rows; M labels.",
        call="one training step",
        rated="tokens that are no padding",
        yardstick="transformers",
        truth="transformers'",
    ),
}


def page(op: str, words: Words, rows: list[Row], absent: list[Absence]) -> list[str]:
    first = rows[0]
    providers = ordered({row.provider for row in rows})
    timed = [name for name in providers if name != "floor"]
    unit = "GB/s" if first.gb_per_s is not None else "tokens/s" if first.tokens_per_s is not None else None
    outputs = " and ".join(dict.fromkeys(name for row in rows for name in row.errors if name != "loss"))
    cases = by_case(rows)
    labels = ["case", " x ".join(axes(first)), "dtype", *(["ignored"] if labelled(first) else [])]
    return [
        f"# {op} on {first.device}",
        "",
        f"{about(rows)} How a number is made: `bench/timing.py`. A provider whose results are wrong has no row.",
        "",
        f"![time]({op}-time.png)",
        f"![memory]({op}-memory.png)",
        "",
        f"## {SUBJECT}",
        "",
        "`x floor`: time over the floor's. The other factors: how many times as fast as that provider. Memory is what "
        f"a call takes at most, {plots.scope(words.memory)}.{words.notes}",
        "",
        *table(
            [*labels, counted(first), "ms", *([unit] if unit else []), "x floor",
             *(f"vs {name}" for name in timed if name != SUBJECT), "MiB", f"{words.yardstick}'s MiB"],
            (subject_cells(case, timed, bool(unit), words.yardstick) for case in cases if SUBJECT in case),
            len(labels),
        ),
        "## Time: median ms (multiple of the floor)",
        "",
        *by_provider(labels, providers, cases, time),
        *([f"## {unit} of the {words.rated}", "", *by_provider(labels, providers, cases, rate)] if unit else []),
        f"## Memory {plots.scope(words.memory)}: MiB",
        "",
        *by_provider(labels, timed, cases, memory),
        *(
            ["## Share of the step outside model, loss, backward and the optimizer's step", "",
             *by_provider(labels, timed, cases, outside)]
            if any(row.outside is not None for row in rows)
            else []
        ),
        f"## Largest relative error of {outputs} against {words.truth}",
        "",
        *by_provider(labels, timed, cases, error),
        *absences(absent),
        *disturbances(rows),
    ]  # fmt: skip


def about(records: Sequence[Record]) -> str:
    first = records[0]
    commits = ", ".join(sorted({record.fastft for record in records}))
    days = sorted({record.taken[:10] for record in records})
    return f"{first.driver}; torch {first.torch}; fastft {commits}; {days[0]} to {days[-1]}."


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


def axes(row: Row) -> list[str]:
    """Of the case's shape: all but what follows from the case."""
    return [axis for axis in row.shape if axis not in COUNTED]


def counted(row: Row) -> str:
    """What follows from the case: M from the ignored share, U from the ids."""
    return next(axis for axis in row.shape if axis in COUNTED)


def labelled(record: Record) -> bool:
    """Whether some of the case's tokens have no label."""
    return "M" in record.shape


def conditions(record: Record) -> list[str]:
    return [record.dtype, *([f"{record.ignored:.0%}"] if labelled(record) else [])]


def place(case: Case) -> list[str]:
    row = next(iter(case.values()))
    size = " x ".join(str(row.shape[axis]) for axis in axes(row))
    return [row.case, size, *conditions(row)]


def subject_cells(case: Case, timed: list[str], rated: bool, yardstick: str) -> list[str]:
    own = case[SUBJECT]
    rates = [rate(own)] if rated else []
    cells = [*place(case), str(own.shape[counted(own)]), f"{own.ms_median:.1f}", *rates, f"{1 / own.floor_share:.2f}"]
    for name in timed:
        if name == SUBJECT:
            continue
        other = case.get(name)
        factor = own.eager_factor if name == "eager" else other and other.ms_median / own.ms_median
        cells.append("" if factor is None else f"{factor:.2f}")
    return [*cells, memory(own), memory(case.get(yardstick))]


def time(row: Row | None) -> str:
    return "" if row is None else f"{row.ms_median:.1f} ({1 / row.floor_share:.2f})"


def rate(row: Row | None) -> str:
    if row is not None and row.tokens_per_s is not None:
        return f"{row.tokens_per_s:.0f}"
    return "" if row is None or row.gb_per_s is None else f"{row.gb_per_s:.{1 if row.gb_per_s >= 10 else 2}f}"


def memory(row: Row | None) -> str:
    return "" if row is None or row.peak_mib is None else f"{row.peak_mib:.0f}"


def outside(row: Row | None) -> str:
    return "" if row is None or row.outside is None else f"{row.outside:.1%}"


def error(row: Row | None) -> str:
    return "" if row is None else f"{max(value for name, value in row.errors.items() if name != 'loss'):.1e}"


def by_provider(
    labels: list[str], providers: list[str], cases: list[Case], cell: Callable[[Row | None], str]
) -> list[str]:
    lines = ([*place(case), *(cell(case.get(p)) for p in providers)] for case in cases)
    return table([*labels, *providers], lines, len(labels))


def table(head: list[str], lines: Iterable[list[str]], words: int) -> list[str]:
    """The first `words` columns are words."""
    rule = ["---" if column < words else "---:" for column in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)] + [""]


def absences(absent: list[Absence]) -> list[str]:
    if not absent:
        return []
    where = defaultdict(list)
    for absence in absent:
        where[absence.provider, absence.reason].append(" ".join([absence.case, *conditions(absence)]))
    listed = [f"* **{p}**: {reason} ({', '.join(places)})" for (p, reason), places in where.items()]
    return ["## No row", "", *listed, ""]


def disturbances(rows: list[Row]) -> list[str]:
    loud = [row for row in rows if (row.other_cores or 0.0) > DISTURBED]
    if not loud:
        return []
    note = "Other processes used more than a tenth of a core during all of their samples; worth repeating:"
    listed = (f"{' '.join([row.case, *conditions(row)])} {row.provider} ({row.other_cores:.1f} cores)" for row in loud)
    return ["## Disturbed", "", note, "", *(f"* {text}" for text in listed), ""]


def scaling(rows: list[Row], absent: list[Absence]) -> list[str]:
    """The power of its axis with which time grows, and the times it was fitted to."""
    first = rows[0]
    series = series_of(rows)
    providers = ordered({row.provider for row in rows})
    fitted = (
        [one.case, one.rest, f"{one.axis}: {one.meaning}", f"{WANTED[one.case]:g}" if one.case in WANTED else "",
         *(f"{one.slopes[name]:.2f}" if name in one.slopes else "" for name in providers)]
        for one in series
    )  # fmt: skip
    timed = []
    for one in series:
        times = {name: dict(points) for name, points in one.points.items()}
        for x in sorted({x for points in times.values() for x in points}):
            here = (f"{times[name][x]:.2f}" if x in times.get(name, {}) else "" for name in providers)
            timed.append([one.case, f"{one.axis} = {x:,}", *here])
    return [
        f"# scaling on {first.device}",
        "",
        f"{about(rows)} One axis grows, the others rest (`bench/scaling.py`). Time must grow with M and U, not with N, "
        "and a table's not with V. `head-P` is a head's step shared by P processes (`bench/processes.py`).",
        "",
        "![scaling](scaling.png)",
        "",
        "## The power b of time ~ axis^b, least squares of the logarithms",
        "",
        *table(["series", "at rest", "axis", "wanted", *providers], fitted, 3),
        "## Time: median ms",
        "",
        *table(["series", "axis", *providers], timed, 2),
        *absences(absent),
        *disturbances(rows),
    ]


def accuracy(records: list[Accuracy], absent: list[Absence]) -> list[str]:
    """Errors of every provider, and how many times eager's own they are."""
    by: dict[tuple[str, str], dict[str, Accuracy]] = defaultdict(dict)
    for record in records:
        by[record.case, record.dtype][record.provider] = record
    providers = [name for name in ordered({record.provider for record in records}) if name != "eager"]
    lines = []
    for (case, dtype), here in by.items():
        eager = next(iter(here.values())).eager
        for output, own in eager.items():
            cells = (relative(here[name].errors[output], own, output) if name in here else "" for name in providers)
            lines.append([case, dtype, output, f"{own:.1e}", *cells])
    return [
        f"# accuracy on {records[0].device}",
        "",
        f"{about(records)} `|got - truth| / |truth|` (Frobenius norm) against eager in fp64 on the same values; in "
        "brackets how many times eager's own error at that dtype, of gradients (eager's loss may be right by luck). "
        "Here are also those whom the check keeps from the tables of times. What the conditions are: "
        "`bench/accuracy.py`.",
        "",
        "![accuracy](accuracy.png)",
        "",
        *table(["condition", "dtype", "output", "eager", *providers], lines, 3),
        *absences(absent),
    ]


def relative(error: float, own: float, output: str) -> str:
    return f"{error:.1e}" if output == "loss" or not own else f"{error:.1e} ({error / own:.2f})"
