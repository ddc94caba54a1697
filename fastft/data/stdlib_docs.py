"""The corpus `builtin:stdlib-docs`: prose about Python, from the running interpreter.

Its documents are the topics of `help()` (chapters of the language reference) and the longer docstrings of modules,
classes and functions of the standard library: some two thousand, 1.5 million characters. Nothing is downloaded.
Docstrings of a module, or package, are one group, as they speak of the same things. Some topics hold others word for
word, so that one whose paragraphs mostly stand in a longer one is left out.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from fastft.data import docstrings
from fastft.data.readers import RawRecord

CHARS = 200  # of a document at least
PROSE_SHARE = 0.85  # letters, spaces and sentence marks of a docstring: leaves out tables and sessions
REPEATED_SHARE = 0.2  # of a topic's paragraphs, in characters, that a longer topic may hold too
PARAGRAPH_CHARS = 60  # shorter ones, such as headings, say nothing about repetition


def records() -> Iterator[RawRecord]:
    """Documents of the running interpreter, as `text`: first the topics, then docstrings by file and line."""
    for name, text in _topics():
        yield RawRecord({"text": text}, f"help({name!r})", f"topic {name}")
    for text, origin, module in documents(docstrings.folder()):
        yield RawRecord({"text": text}, origin, module)


@functools.cache
def documents(stdlib: Path) -> tuple[tuple[str, str, str], ...]:
    """Docstring, `file:line` and module of each documented module, class and function that has prose to offer."""
    found: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for path in docstrings.files(stdlib):
        relative = path.relative_to(stdlib)
        for line, text in _docstrings(docstrings.parse(path)[0]):
            if is_prose(text) and text not in seen:
                seen.add(text)
                found.append((text, f"{relative.as_posix()}:{line}", docstrings.module(relative)))
    return tuple(found)


def is_prose(text: str) -> bool:
    """Whether a docstring is long enough and mostly English sentences."""
    sentences = sum(character.isalpha() or character in " \n.,;:'" for character in text)
    return (
        len(text) >= CHARS
        and sentences >= PROSE_SHARE * len(text)
        and sum(map(str.isascii, text)) >= docstrings.ASCII_SHARE * len(text)
    )


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    placed = sorted(((getattr(node, "lineno", 1), node) for node in nodes), key=lambda found: found[0])
    for line, node in placed:
        if text := ast.get_docstring(node):
            yield line, text.strip()


def _topics() -> list[tuple[str, str]]:
    """Names and texts in the order of names, without those that longer ones hold."""
    seen: set[str] = set()
    kept = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", topics[name])]
        telling = [paragraph for paragraph in paragraphs if len(paragraph) >= PARAGRAPH_CHARS]
        repeated = sum(len(paragraph) for paragraph in telling if paragraph in seen)
        if len(topics[name]) >= CHARS and repeated <= REPEATED_SHARE * sum(map(len, telling)):
            kept.append((name, topics[name].strip()))
            seen.update(telling)
    return sorted(kept)
