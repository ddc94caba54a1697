"""An overview as one HTML file."""

from collections.abc import Iterator
from html import escape

from fastft.trainer.inspection.lengths import Lengths
from fastft.trainer.inspection.overview import Overview, TaskView
from fastft.trainer.inspection.rows import Cell, Part, Row
from fastft.trainer.inspection.shades import shade
from fastft.trainer.inspection.terminal import bins
from fastft.trainer.inspection.tokens import BECAME, BREAK, PREFIX_END, REST, SPACE, TAB, TIMES
from fastft.trainer.inspection.verdict import Finding
from fastft.trainer.reporting.document import document, facts

STYLE = """
td, svg, .key { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.t { padding: .1em 0; border-left: 1px solid var(--line); color: var(--soft); }
.w { color: #000; border-left-color: #fff9; border-bottom: 2px solid #1d7a3a; }
.s { color: var(--special); font-weight: 600; } .w.s { color: #6a1b9a; } .was { font-style: italic; }
.t i { opacity: .55; font-style: normal; } .n { font-weight: 700; } .end { color: var(--limit); font-weight: 700; }
svg { width: 100%; max-width: 34rem; display: block; }
svg text { font-size: 11px; fill: var(--ink); } svg rect { fill: var(--bar); } svg .limit { fill: var(--limit); }
.verdict { border-left: .3rem solid; padding: .1rem .7rem; margin: .6rem 0; } .fail { color: var(--fail); }
.warn { color: var(--warn); } .good { color: var(--good); }
table { border-collapse: collapse; font-size: .8rem; } td, th { padding: .05rem .8rem .05rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line); } ul { padding-left: 1.2rem; }
"""


def page(view: Overview) -> str:
    """The whole document."""
    steps = "".join(f"<li>{escape(step)}</li>" for step in view.steps)
    body = (
        f"{_verdict(view.findings)}\n"
        + "".join(map(_task, view.tasks))
        + (f"<h2>first steps</h2>\n<ul>{steps}</ul>\n" if steps else "")
    )
    return document(f"{view.model}, before training", body, STYLE)


def _verdict(found: list[Finding]) -> str:
    if not found:
        return '<p class="verdict good">nothing is wrong that could be seen here</p>'
    kinds = {True: ("fail", "FAILS"), False: ("warn", "warning")}
    told = ((*kinds[finding.fatal], escape(str(finding))) for finding in found)
    return "\n".join(f'<p class="verdict {style}"><b>{name}</b>: {text}</p>' for style, name, text in told)


def _task(task: TaskView) -> str:
    figures = "".join(map(histogram, task.lengths))
    rows = "".join(map(_row, task.rows))
    return f"<h2>{escape(task.name)}</h2>\n{facts(task.facts)}{figures}{_legend() if rows else ''}{rows}"


def _legend() -> str:
    learned, pale = _span("learned", 1.0), _span("less", 0.5)
    return (
        f'<p class="soft"><span class="key">{learned}</span> tokens are learned, '
        f'<span class="key"><b class="n">{TIMES}0.5</b>{pale}</span> with a weight other than 1; '
        f'<span class="key"><span class="t s">&lt;special&gt;</span></span> tokens; '
        f'<span class="key"><span class="t was">shown{BECAME}</span>{learned}</span> where the model is shown '
        f'something else; before <b class="end">{PREFIX_END}</b> all tokens see each other; {SPACE} is a space, '
        f"{TAB} a tab, {BREAK} ends a line, {REST} goes on with a character.</p>\n"
    )


def _row(row: Row) -> str:
    note = f"<h4>{escape(row.note)}</h4>" if row.note else ""
    return f"<h3>{escape(row.title)}</h3>\n{''.join(map(_part, row.parts))}{note}\n"


def _part(part: Part) -> str:
    title = f"<h4>{escape(part.title)}</h4>\n" if part.title else ""
    return f'{title}<div class="text tokens">{"<wbr>".join(_tokens(part))}</div>\n{_positions(part)}'


def _tokens(part: Part) -> Iterator[str]:
    before = 0.0
    for place, cell in enumerate(part.cells):
        number = f'<b class="n">{TIMES}{cell.weight:g}</b>' if cell.weight not in (0.0, 1.0, before) else ""
        end = f'<b class="end">{PREFIX_END}</b>' if place + 1 == part.prefix else ""
        yield number + _cell(cell, place % 2 == 1) + end
        before = cell.weight


def _cell(cell: Cell, odd: bool) -> str:
    if cell.target is None:
        return _span(cell.text, cell.weight, odd, cell.special)
    kind = "t s was" if cell.special else "t was"
    return f'<span class="{kind}">{_text(cell.text)}{BECAME}</span>{_span(cell.target, cell.weight, odd)}'


def _span(text: str, weight: float, odd: bool = False, special: bool = False) -> str:
    names = "t" + " w" * bool(weight) + " s" * special
    colour = f' style="background:{shade(weight, odd)}"' if weight else ""
    return f'<span class="{names}"{colour}>{_text(text)}</span>'


def _text(text: str) -> str:
    """Escaped, with what stands for the invisible fainter, and line breaks."""
    found = escape(text)
    for mark in (SPACE, TAB, BREAK):
        found = found.replace(mark, f"<i>{mark}</i>")
    return found.replace("\n", "<br>")


def _positions(part: Part) -> str:
    """A table of every token, folded away."""
    rows = "".join(
        f"<tr><td>{place}</td><td>{_text(cell.text).replace('<br>', '')}</td>"
        f"<td>{_text(_learned(cell)).replace('<br>', '')}</td><td>{cell.weight:g}</td></tr>\n"
        for place, cell in enumerate(part.cells)
    )
    head = "<tr><th>position</th><th>token</th><th>learned here</th><th>weight</th></tr>\n"
    return f"<details><summary>position by position</summary>\n<table>\n{head}{rows}</table>\n</details>\n"


def _learned(cell: Cell) -> str:
    if not cell.weight:
        return ""
    return cell.text if cell.target is None else cell.target


def histogram(lengths: Lengths) -> str:
    """Bars as inline SVG, with the limit marked."""
    told = ", ".join(f"{name} {value:,}" for name, value in lengths.quantiles.items())
    labels, most, high = bins(lengths), max(lengths.counts), 18
    left, right = 8 + 7 * max(map(len, labels)), 20 + 7 * len(f"{most:,}")
    room = 340 - left - right
    drawn = []
    for place, (label, count, start, end) in enumerate(
        zip(labels, lengths.counts, lengths.edges, lengths.edges[1:], strict=False)
    ):
        y = place * high
        marked = start <= lengths.limit < end
        kind = ' class="limit"' if marked else ""
        wide = max(room * count / most, 1 if count else 0)
        drawn.append(
            f'<text x="{left - 6}" y="{y + 13}" text-anchor="end"{kind}>{label}</text>'
            f'<rect x="{left}" y="{y + 2}" width="{wide:.1f}" height="{high - 4}"{kind}/>'
            f'<text x="{left + wide + 5:.1f}" y="{y + 13}">{count:,}</text>\n'
        )
    beyond = " is beyond all of them" if lengths.limit >= lengths.edges[-1] else " is where the bar is orange"
    return (
        f"<figure><figcaption>tokens of a {lengths.name}: {told}; {lengths.bound} {lengths.limit:,}{beyond}"
        "</figcaption>\n"
        f'<svg viewBox="0 0 340 {high * len(labels)}" role="img" aria-label="histogram of lengths">\n'
        f"{''.join(drawn)}</svg></figure>\n"
    )
