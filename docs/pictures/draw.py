"""The pictures of the site, as SVG whose colours come from docs/style.css: `python docs/pictures/draw.py`.

Each is 440 units wide with text of 15, so that it can be read on a phone, and has no empty line, so that Markdown takes
it as it is.
"""

from collections.abc import Iterable
from pathlib import Path

WIDTH, CELL = 440, 20
PROMPTS, ANSWERS = (
    (13, 9, 15, 6),
    (3, 4, 2, 3),
)  # tokens of four sequences; the rest of 20 is padding
TOUCHED = (3, 4, 11, 17, 26)  # rows of a table of 32 that a step reads


def box(
    x: float, y: float, width: float, height: float, kind: str, radius: float = 2
) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>'


def words(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{text}</text>'


def picture(height: int, title: str, parts: Iterable[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">'
    return "\n".join(
        ['<figure class="picture">', head, *parts, "</svg>", "</figure>", ""]
    )


def tokens() -> str:
    """A batch: which positions carry a label."""
    parts = []
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for place in range(20):
            kind = (
                "spared"
                if place < prompt
                else "learns"
                if place < prompt + answer
                else "hollow"
            )
            parts.append(box(20 + place * CELL, 8 + row * 26, CELL - 3, 22, kind))
    for x, kind, text in (
        (20, "spared", "prompt"),
        (115, "learns", "has a label"),
        (240, "hollow", "padding"),
    ):
        parts += [box(x, 124, 15, 15, kind), words(x + 22, 137, text)]
    title = (
        f"A batch of four sequences: {sum(ANSWERS)} of 80 positions carry a label"
    )
    return picture(150, title, parts)


def head() -> str:
    """Logits of all positions, and of those with a label."""
    share = sum(ANSWERS) / 80
    parts = [words(110, 20, "as usual", "mid"), words(330, 20, "fastft", "mid")]
    parts += [
        box(20, 32, 180, 160, "paid"),
        words(110, 117, "all positions x V", "mid dark"),
    ]
    parts += [
        box(240, 32, 180, 160, "hollow"),
        box(240, 32, 180, 160 * share, "learns"),
    ]
    parts += [
        words(330, 49, "labels x V", "mid dark"),
        words(330, 127, "never computed", "mid faint"),
    ]
    return picture(
        205,
        "Logits: of all positions as usual, of those with a label in fastft",
        parts,
    )


def rows() -> str:
    """What a step of an embedding table writes."""
    parts = [
        words(65, 20, "table", "mid"),
        words(208, 20, "dense step", "mid"),
        words(362, 20, "fastft", "mid"),
    ]
    for row in range(32):
        parts.append(
            box(
                20, 32 + row * 5, 90, 4, "learns" if row in TOUCHED else "spared", 1
            )
        )
    for column, name in enumerate(("g", "m", "v")):
        parts += [
            box(138 + column * 48, 32, 44, 159, "paid"),
            words(160 + column * 48, 210, name, "mid faint"),
        ]
        for place in range(len(TOUCHED)):
            parts.append(box(292 + column * 48, 32 + place * 5, 44, 4, "learns", 1))
        parts.append(words(314 + column * 48, 77, name, "mid faint"))
    parts.append(words(20, 210, "5 rows read", "faint"))
    title = "A step of a table: gradient and state of all rows when dense, of the rows that were read in fastft"
    return picture(222, title, parts)


def catching_up() -> str:
    """One row over ten steps: read at three of them, equal to dense training at each."""
    parts = [words(20, 20, "one row of the table, ten steps")]
    read = (1, 5, 10)
    for step in range(1, 11):
        x = 20 + (step - 1) * 41
        parts += [
            box(x, 34, 36, 26, "paid" if step not in read else "learns"),
            words(x + 18, 88, str(step), "mid faint"),
        ]
    parts += [
        box(20, 104, 15, 15, "learns"),
        words(42, 117, "read: its missed steps are made up for first"),
    ]
    parts += [
        box(20, 128, 15, 15, "spared"),
        words(42, 141, "decay and momentum only: nothing is done yet"),
    ]
    return picture(
        154,
        "A row that is read at steps 1, 5 and 10 catches up before each read",
        parts,
    )


PICTURES = {
    "tokens": tokens,
    "head": head,
    "rows": rows,
    "catching_up": catching_up,
}


def main() -> None:
    for name, draw in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
