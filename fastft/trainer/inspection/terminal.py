"""An overview on a terminal: in colour, or with marks that say the same where there is none."""

from collections.abc import Iterator
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from fastft.trainer.inspection import shades
from fastft.trainer.inspection.lengths import Lengths
from fastft.trainer.inspection.overview import Overview, TaskView
from fastft.trainer.inspection.rows import Cell, Part
from fastft.trainer.inspection.tokens import (
    BECAME,
    BORDER,
    BREAK,
    CLOSE,
    OPEN,
    PREFIX_END,
    REST,
    SPACE,
    SPECIAL,
    TAB,
    TIMES,
)
from fastft.trainer.inspection.verdict import Finding

LINES, FIRST, LAST = 48, 32, 12  # of one part: where there are more, those that are shown
BAR = 40
ENOUGH = ("256", "truecolor", "windows")  # colours to tell tokens apart; with fewer, marks do it

Segment = tuple[str, str]  # characters and their style


def show(view: Overview, console: Console) -> None:
    """Print samples, facts and verdict, in this order, so that the last stays in sight."""
    colour = console.color_system in ENOUGH and not console.no_color
    _say(console, f"{view.model}, before training", "bold")
    if any(task.rows for task in view.tasks):
        _say(console, legend(colour))
    for task in view.tasks:
        console.print(Rule(Text(task.name, "bold"), align="left", style="dim"))
        for row in task.rows:
            _say(console, f"\n{row.title}", "bold")
            for part in row.parts:
                if part.title:
                    _say(console, f"-- {part.title}", "italic")
                for line in _shortened(lines(part, console.width, colour)):
                    console.print(line, overflow="fold", highlight=False)
            if row.note:
                _say(console, f"-- {row.note}", "italic")
        console.print("", _facts(task))
        for lengths in task.lengths:
            _say(console, "")
            for text in histogram(lengths):
                _say(console, text)
    if view.steps:
        console.print(Rule(Text("first steps", "bold"), align="left", style="dim"))
        for step in view.steps:
            _say(console, step)
    console.print(Rule(Text("verdict", "bold"), align="left", style="dim"))
    for text, style in verdict(view.findings):
        console.print(Text(text, style))


def legend(colour: bool) -> str:
    marks = f"{OPEN}learned{CLOSE}, {BORDER} between tokens, {SPECIAL} before special ones"
    return (
        f"{'green: learned, violet: special tokens' if colour else marks}, {TIMES}0.5: a weight other than 1,\n"
        f"shown{BECAME}learned: the model is shown something else, {PREFIX_END} the end of a prefix,\n"
        f"{SPACE} a space, {TAB} a tab, {BREAK} the end of a line, {REST} the rest of a character"
    )


def lines(part: Part, width: int, colour: bool) -> Iterator[Text]:
    """The tokens of a part, broken at the text's own line breaks and, between tokens, at the width."""
    line = Text()
    for segments in _marked(part, colour):
        length = max(map(cell_len, "".join(text for text, _ in segments).split("\n")))
        if line and line.cell_len + length > width:
            yield line
            line = Text()
        for text, style in segments:
            pieces = text.split("\n")
            for piece in pieces[:-1]:
                yield line.append(piece, style)
                line = Text()
            line.append(pieces[-1], style)
    if line:
        yield line


def _marked(part: Part, colour: bool) -> Iterator[list[Segment]]:
    """The segments of each token, with the marks before and behind it."""
    place = 0
    for weight, run in groupby(part.cells, key=lambda cell: cell.weight):
        cells = list(run)
        for index, cell in enumerate(cells):
            segments = list(_segments(cell, place % 2 == 1, colour))
            if weight and weight != 1 and index == 0:
                segments.insert(0, (f"{TIMES}{weight:g} ", "bold" if colour else ""))
            if not colour:
                before = (OPEN if weight else "") if index == 0 else BORDER
                if index == 0 and not weight and place and place != part.prefix:
                    before = ""  # the bracket that was just closed parts them
                segments = [(before, ""), *segments, (CLOSE if weight and index == len(cells) - 1 else "", "")]
            place += 1
            if place == part.prefix:
                segments.append((PREFIX_END, "bold" if colour else ""))
            yield segments


def _segments(cell: Cell, odd: bool, colour: bool) -> Iterator[Segment]:
    if not colour:
        yield (SPECIAL if cell.special else "") + cell.text, ""
        if cell.target is not None:
            yield BECAME + cell.target, ""
        return
    on = f" on {shades.tier(cell.weight, odd)}" if cell.weight else ""
    plain = f"{shades.INK if on else shades.DIM[odd]}{on}"
    special = f"bold {shades.SPECIAL_INK if on else shades.SPECIAL}{on}"
    if cell.target is None:
        yield cell.text, special if cell.special else plain
    else:
        yield cell.text + BECAME, f"italic {'bold ' + shades.SPECIAL if cell.special else shades.DIM[odd]}"
        yield cell.target, plain


def _shortened(found: Iterator[Text]) -> list[Text]:
    kept = list(found)
    if len(kept) <= LINES:
        return kept
    out = f"... {len(kept) - FIRST - LAST:,} lines left out here; --html FILE shows them"
    return [*kept[:FIRST], Text(out, "italic"), *kept[-LAST:]]


def _facts(task: TaskView) -> RenderableType:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    for name, text in task.facts:
        table.add_row(name, Text(text))
    return table


def histogram(lengths: Lengths) -> Iterator[str]:
    """A bar for each bin, and where the limit is."""
    told = ", ".join(f"{name} {value:,}" for name, value in lengths.quantiles.items())
    yield f"tokens of a {lengths.name}: {told}"
    labels = bins(lengths)
    width, most = max(map(len, labels)), max(lengths.counts)
    digits = len(f"{most:,}")
    for label, count, start, end in zip(labels, lengths.counts, lengths.edges, lengths.edges[1:], strict=False):
        mark = f"  < {lengths.bound} {lengths.limit:,}" if start <= lengths.limit < end else ""
        yield f"  {label:>{width}}  {_bar(count / most):<{BAR}}  {count:>{digits},}{mark}"
    if lengths.limit >= lengths.edges[-1]:
        yield f"  {'':>{width}}  {lengths.bound} {lengths.limit:,} is beyond all of them"


def bins(lengths: Lengths) -> list[str]:
    """What each bin holds, as `50-99`."""
    pairs = zip(lengths.edges, lengths.edges[1:], strict=False)
    return [f"{start:,}" if end - start == 1 else f"{start:,}-{end - 1:,}" for start, end in pairs]


def _bar(share: float) -> str:
    """Up to 40 blocks, in eighths; what is not empty is seen."""
    eighths = max(round(8 * BAR * share), int(share > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def verdict(found: list[Finding]) -> Iterator[Segment]:
    """A line for each finding, and whether training can start."""
    for finding in found:
        kind = ("FAILS", "bold red") if finding.fatal else ("warning", "yellow")
        yield f"{kind[0]}: {finding}", kind[1]
    if not found:
        yield "nothing is wrong that could be seen here", "bold green"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style))
