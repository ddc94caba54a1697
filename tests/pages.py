"""Blocks of code on a page of Markdown, and how each kind is tried.

What stands on a page of ours runs: Python top to bottom in one namespace, YAML as a `TrainConfig`, commands through our
own parsers. A block of another tool says so in its title, where readers see it: `title="... (not run: why)"`. It need
only be well formed.
"""

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, what stands behind that, its text, and the line of the page it begins at."""

    language: str
    title: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return not re.search(r"\(not run: \w[^)]+\)", self.title)


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(hit[2], hit[3], textwrap.dedent(hit[4]), text.count("\n", 0, hit.start()) + 2)
        for hit in FENCE.finditer(text)
    ]
    return [block for block in found if block.language == language]


def run_python(page: Path) -> dict[str, Any]:
    """Run the Python of a page; what it has defined. Blocks of other tools are compiled."""
    names: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")  # tracebacks with the page's own lines
        if block.runs:
            exec(code, names)
    return names


def commands(page: Path) -> list[list[str]]:
    """Words of each command line, comments left out."""
    lines = "".join(block.text for block in blocks(page, "bash") if block.runs).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
