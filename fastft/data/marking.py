"""Chat templates made to say which message each character of their output came from.

A template runs over the messages in a loop. `instrument` puts marks around the body of every such loop, and around the
body of every {% generation %} block; `read` takes them out of the output again. A mark is a word between two lone
surrogates, which no text holds. It is written where a tag was already, with its whitespace control kept: what is left
is what the template writes without marks, which the caller checks.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_STARTS, _STOPS = "fastft_starts", "fastft_stops"  # keys under which a message has its marks
_EDGE = "\ud800"
_OPEN, _CLOSE = (rf"{{{{ '\ud800{word}\ud800' }}}}" for word in ("open", "close"))  # as a template writes them
_TAG = re.compile(
    r"""\{\#.*?\#\}                                                          # comments,
    | \{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}               # raw text
    | \{\{(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^'"}]|\}(?!\}))*\}\}       # and expressions are passed over
    | \{%(?P<left>[-+]?)\s*(?P<name>for|endfor|continue|break|generation|endgeneration)\b
      (?P<rest>(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^'"%])*?)(?P<right>[-+]?)%\}""",
    re.VERBOSE | re.DOTALL,
)


class Piece(NamedTuple):
    """Characters [start, end) that came of a message."""

    message: int
    start: int
    end: int


class Reading(NamedTuple):
    """Output of an instrumented template: its text, a piece per message and loop, and what is in {% generation %}."""

    text: str
    pieces: list[Piece]
    blocks: list[tuple[int, int]]


def numbered(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as an instrumented template wants them."""
    return [
        {**message, _STARTS: f"{_EDGE}+{index}{_EDGE}", _STOPS: f"{_EDGE}-{index}{_EDGE}"}
        for index, message in enumerate(messages)
    ]


def instrument(source: str) -> str:
    """The template with marks in it; it wants messages that are `numbered`."""
    loops: list[str] = []  # the variable of each loop that is open; empty for one over pairs

    def mark(tag: re.Match[str]) -> str:
        left, name, rest, right = tag["left"], tag["name"], tag["rest"], tag["right"]
        if name is None:
            return tag[0]
        if name == "generation":
            return f"{{%{left} generation %}}{{% if true %}}{_OPEN}{{% endif {right}%}}"
        if name == "endgeneration":
            return f"{{%{left} if true %}}{_CLOSE}{{% endif %}}{{% endgeneration {right}%}}"
        if name == "for":
            variable = re.match(r"\s*(\w+)\s+in\b", rest)
            loops.append(variable[1] if variable else "")
            if not variable:
                return tag[0]
            return f"{{%{left} for{rest}%}}{{% if true %}}{{{{ {variable[1]}['{_STARTS}'] }}}}{{% endif {right}%}}"
        current = loops[-1] if loops else ""
        if name == "endfor":
            del loops[-1:]
        if not current:
            return tag[0]
        stops = f"{{%{left} if {current} is defined %}}{{{{ {current}['{_STOPS}'] }}}}{{% endif %}}"
        return f"{stops}{{% {name}{rest}{right}%}}"

    return _TAG.sub(mark, source)


def read(output: str) -> Reading:
    """Text, pieces and blocks, in the order in which they end. What starts and never ends is left out."""
    parts = output.split(_EDGE)
    pieces: list[Piece] = []
    blocks: list[tuple[int, int]] = []
    running: list[tuple[int, int]] = []  # message, start
    opened: int | None = None
    length = len(parts[0])
    for mark, text in zip(parts[1::2], parts[2::2], strict=False):  # uneven if the template cut a mark in two
        if mark[:1] == "+":
            running.append((int(mark[1:]), length))
        elif mark[:1] == "-":
            while running and running[-1][0] != int(mark[1:]):
                running.pop()
            if running:
                pieces.append(Piece(*running.pop(), length))
        elif mark == "open":
            opened = length
        elif mark == "close" and opened is not None:
            blocks.append((opened, length))
            opened = None
        length += len(text)
    return Reading("".join(parts[::2]), pieces, blocks)
