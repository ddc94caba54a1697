"""The same is said in colour, with marks and on a page: each is read back, token by token."""

import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import Color, ColorSystem
from rich.console import Console
from rich.text import Text

from fastft.trainer.inspection import shades
from fastft.trainer.inspection.lengths import Lengths
from fastft.trainer.inspection.overview import Overview, TaskView
from fastft.trainer.inspection.page import page
from fastft.trainer.inspection.rows import Cell, Part, Row
from fastft.trainer.inspection.terminal import histogram, lines, show
from fastft.trainer.inspection.tokens import MARKS, TIMES, visible
from fastft.trainer.inspection.verdict import Finding

TEXT = st.text(st.sampled_from([*"ab \n\t<&\"'", *MARKS, "é", "日", "\x1b"]), min_size=1, max_size=5).map(visible)
CELLS = st.lists(
    st.builds(Cell, TEXT, st.sampled_from([0.0, 1.0, 0.5, 3.0]), st.none() | TEXT, st.booleans()),
    min_size=1,
    max_size=9,
).map(lambda cells: [cell if cell.weight else Cell(cell.text, special=cell.special) for cell in cells])
LENGTHS = Lengths(
    "sample", 64, "max_length", {"shortest": 3, "longest": 80}, [0, 20, 40, 60, 80, 100], [5, 0, 1, 400, 2]
)


def whole(found: list[Text]) -> str:
    return "".join(line.plain + ("\n" if line.plain.endswith("⏎") else "") for line in found)


def read_marks(shown: str) -> list[Cell]:
    """Cells out of marked text: an independent reading of what the legend says."""
    cells: list[Cell] = []
    weight, token = 0.0, ""
    pieces = re.findall(rf"\\.|⏎\n|⟦{TIMES}[\d.e+-]+ |[⟦⟧│‖]|.", shown, re.DOTALL)

    def end() -> None:
        nonlocal token
        if token:
            special, rest = token.startswith("◆"), token.removeprefix("◆")
            parts = re.split(r"(?<!\\)←", rest)
            cells.append(Cell(parts[0], weight, parts[1] if parts[1:] else None, special))
        token = ""

    for piece in pieces:
        if piece[0] in "⟦⟧│‖":
            end()
            if piece[0] in "⟦⟧":
                weight = 0.0 if piece == "⟧" else float(piece[2:]) if len(piece) > 1 else 1.0
        else:
            token += piece
    end()
    return cells


@given(CELLS, st.sampled_from([20, 80, 10_000]))
def test_marks_say_everything(cells: list[Cell], width: int) -> None:
    wide = whole(list(lines(Part("", cells), 10_000, colour=False)))
    assert read_marks(wide) == cells
    assert "".join(line.plain for line in lines(Part("", cells), width, colour=False)) == wide.replace("\n", "")


@given(CELLS)
def test_colours_say_everything(cells: list[Cell]) -> None:
    """Text of one style is one token, as its neighbours have another; its style tells what it is."""
    found: list[tuple[str, str]] = []
    for line in lines(Part("", cells), 10_000, colour=True):
        for start, end, style in line.spans:
            found.append((line.plain[start:end], str(style)))
    read = ""
    for cell, odd in zip(cells, [place % 2 == 1 for place in range(len(cells))], strict=True):
        tier = f" on {shades.tier(cell.weight, odd)}" if cell.weight else ""
        ink = shades.SPECIAL_INK if tier else shades.SPECIAL
        plain = (shades.INK if tier else shades.DIM[odd]) + tier
        learned = cell.text if cell.target is None else cell.target
        for piece in learned.replace("\n", "").split("⏎"):
            style = f"bold {ink}{tier}" if cell.special and cell.target is None else plain
            assert any(piece in text and style == given for text, given in found)
        read += cell.text.replace("\n", "") + (f"←{cell.target}".replace("\n", "") if cell.target is not None else "")
    assert re.sub(rf"{TIMES}[\d.]+ ", "", "".join(text for text, style in found if style != "bold")) == read
    numbers = [float(text[1:]) for text, style in found if style == "bold"]
    runs = [cell.weight for n, cell in enumerate(cells) if not n or cells[n - 1].weight != cell.weight]
    assert numbers == [weight for weight in runs if weight not in (0, 1)]


def test_colours_differ_on_a_terminal_of_256() -> None:
    def number(colour: str) -> int | None:
        return Color.parse(colour).downgrade(ColorSystem.EIGHT_BIT).number

    every = [colour for _, pair in shades.TIERS for colour in pair]
    every += [*shades.DIM, shades.SPECIAL, shades.SPECIAL_INK]
    assert len({number(colour) for colour in every}) == len(every)


def test_a_prefix_ends_in_sight() -> None:
    cells = [Cell("a"), Cell("b"), Cell("c", 1.0), Cell("d", 1.0)]
    assert whole(list(lines(Part("", cells, prefix=2), 80, colour=False))) == "a│b‖⟦c│d⟧"
    assert whole(list(lines(Part("", cells, prefix=2), 80, colour=True))) == "ab‖cd"


def test_lines_break_between_tokens() -> None:
    cells = [Cell(f"·word{n}") for n in range(20)]
    for colour in (False, True):
        shown = [line.plain for line in lines(Part("", cells), 24, colour)]
        assert all(len(line) <= 24 for line in shown)
        assert len(shown) > 4
        assert "".join(shown).replace("│", "") == "".join(cell.text for cell in cells)


def overview_of(cells: list[Cell]) -> Overview:
    rows = [Row("sample 0: 3 tokens", [Part("source <1>", cells)], "label <0>")]
    found = [Finding(True, "the mask is <empty>", "Mend it"), Finding(False, "padding", "Pack")]
    task = TaskView("clm & co", [("objective", "clm: <b>"), ("padding", "3.0 %")], [LENGTHS], rows, found)
    return Overview("model<1>", [task], ["step 1: clm & co"])


def printed(view: Overview, **options: object) -> str:
    file = io.StringIO()
    show(view, Console(file=file, width=100, **options))  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "marked"),
    [
        ({"force_terminal": True, "color_system": "truecolor"}, False),
        ({"force_terminal": True, "color_system": "256"}, False),
        ({"force_terminal": True, "color_system": "standard"}, True),
        ({"force_terminal": True, "color_system": "truecolor", "no_color": True}, True),
        ({}, True),
    ],
)
def test_marks_where_colours_are_off(options: dict[str, object], marked: bool) -> None:
    shown = printed(overview_of([Cell("a"), Cell("b", 1.0)]), **options)
    assert ("⟦b⟧" in shown) == marked
    assert ("\x1b[" in shown) == bool(options)
    for words in (
        "objective",
        "clm: <b>",
        "label <0>",
        "-- source <1>",
        "step 1: clm & co",
        "FAILS: the mask is <empty>",
    ):
        assert words in re.sub(r"\x1b\[[\d;]*m", "", shown)


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦b⟧" in printed(overview_of([Cell("b", 1.0)]), force_terminal=True)


def test_what_is_left_out_of_a_long_row_is_said() -> None:
    shown = printed(overview_of([Cell(f"line{n}⏎\n") for n in range(100)]))
    assert "line31" in shown
    assert "line32" not in shown
    assert "... 56 lines left out here; --html FILE shows them" in shown
    assert "line99" in shown


def test_histogram() -> None:
    shown = list(histogram(LENGTHS))
    assert shown[0] == "tokens of a sample: shortest 3, longest 80"
    assert [re.sub(" +", " ", line) for line in shown[1:]] == [
        " 0-19 ▌ 5",
        " 20-39 0",
        " 40-59 ▏ 1",
        f" 60-79 {'█' * 40} 400 < max_length 64",
        " 80-99 ▎ 2",
    ]


class Reader(HTMLParser):
    """Checks that elements nest, and reads back text, links, scripts and the learned tokens."""

    VOID = ("meta", "br", "wbr", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.text, self.learned, self.rows, self.names = "", "", 0, set[str]()
        self.foreign: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.foreign += [name for name, _ in attrs if name in ("src", "href") or name.startswith("on")]
        self.foreign += [value for _, value in attrs if value and "://" in value]
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        inside = [name for _, name in self.open]
        if any("tokens" in name for name in inside) and any("w" in name.split() for name in inside):
            self.learned += data


@given(CELLS)
def test_a_page_parses_and_says_the_same(cells: list[Cell]) -> None:
    text = page(overview_of(cells))
    reader = Reader(text)
    learned = "".join(cell.target or cell.text for cell in cells if cell.weight)
    assert reader.learned == learned.replace("\n", "")
    assert not reader.foreign
    assert not reader.names & {"script", "link", "img"}
    assert "@import" not in text
    assert "url(" not in text
    for words in ("clm: <b>", "label <0>", "source <1>", "the mask is <empty>", "60-79", "400", "step 1: clm & co"):
        assert words in reader.text


def test_a_page_of_hostile_data() -> None:
    hostile = "<script>alert(1)</script>\"'&amp;</style><!--"
    reader = Reader(page(overview_of([Cell(hostile, 0.5, hostile, True)])))
    assert "script" not in reader.names
    assert hostile in reader.text
    assert f"{TIMES}0.5" in reader.text
