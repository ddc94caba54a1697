"""The corpus `builtin:stdlib-docstrings`: Python functions and their docstrings, from the running interpreter.

Nothing is downloaded or shipped: the pairs are made from the source of the standard library, a few thousand of real,
reviewed text. The prompt asks for the docstring of a function shown without it; the completion is the docstring.
Standard library only, so that it works wherever Python does.
"""

import ast
import functools
import os
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastft.data.readers import RawRecord

INSTRUCTION = "Write the docstring of this Python function."
SKIPPED = frozenset(  # folders that are tests, programs of their own, or not part of the standard library
    ("test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages")
)
SOURCE_CHARS = (30, 2000)  # of the function without its docstring
DOCSTRING_CHARS = (16, 1000)
ASCII_SHARE = 0.97  # of a docstring: leaves out what is not English prose

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Pair(NamedTuple):
    """One function. `module` is its top-level module or package, `origin` is `file:line name`."""

    prompt: str
    completion: str
    module: str
    origin: str


@functools.cache
def pairs(stdlib: Path | None = None) -> tuple[Pair, ...]:
    """Every usable function/docstring pair, in the order of files and lines.

    Left out are functions whose source or docstring is very short or very long, functions that do nothing beside having
    a docstring, docstrings that are not English text, and repeated sources or docstrings (the first is kept).

    Args:
        stdlib: folder of the standard library's source; by default that of the running interpreter.

    Raises:
        FileNotFoundError: the source is not installed.
    """
    root = stdlib or folder()
    found: list[Pair] = []
    seen: set[str] = set()
    for path in files(root):
        relative = path.relative_to(root)
        for name, line, source, docstring in _functions(path):
            if _is_usable(source, docstring) and seen.isdisjoint((source, docstring)):
                seen |= {source, docstring}
                prompt = f"{INSTRUCTION}\n\n```python\n{source}\n```"
                found.append(Pair(prompt, docstring, module(relative), f"{relative.as_posix()}:{line} {name}"))
    return tuple(found)


def records() -> Iterator[RawRecord]:
    """The pairs of the running interpreter as `prompt` and `completion`, grouped by module."""
    for pair in pairs():
        yield RawRecord({"prompt": pair.prompt, "completion": pair.completion}, pair.origin, pair.module)


def folder() -> Path:
    """Of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def files(stdlib: Path | None = None) -> list[Path]:
    """The source of a standard library, tests and programs of their own left out.

    Raises:
        FileNotFoundError: the source is not installed.
    """
    root = stdlib or folder()
    found: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]  # not walked: site-packages may be large
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    if not found:
        raise FileNotFoundError(
            f"builtin:stdlib-docstrings and -docs: no Python source under '{root}'. This Python came without the "
            "source of its standard library (an embedded or frozen build); use a python.org, distribution, conda, uv "
            "or pyenv one"
        )
    return sorted(found)


def module(relative: Path) -> str:
    """Top-level module or package of a file of the standard library."""
    return relative.parts[0].removesuffix(".py")


def parse(path: Path) -> tuple[ast.Module, list[str]]:
    """A file's syntax tree and lines; empty ones for a file that is broken on purpose."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return ast.parse(text), text.splitlines(keepends=True)
    except (SyntaxError, UnicodeDecodeError):
        return ast.Module([], []), []


def _functions(path: Path) -> Iterator[tuple[str, int, str, str]]:
    """Qualified name, line, source without docstring, and docstring of each documented function in a file."""
    tree, lines = parse(path)
    for name, node in _walk(tree, ""):
        docstring = ast.get_docstring(node)
        source = _without_docstring(node, lines)
        if docstring and source:
            yield name, node.lineno, source, docstring.strip()


def _walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _walk(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt):
            yield from _walk(child, prefix)


def _without_docstring(node: Function, lines: list[str]) -> str | None:
    """Source from the first decorator to the last line, dedented; None where there is no code beside the docstring."""
    docstring, body = node.body[0], node.body[1:]
    if all(_does_nothing(statement) for statement in body):
        return None
    if docstring.lineno == node.lineno or docstring.end_lineno == body[0].lineno:
        return None  # on one line with other code
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    assert docstring.end_lineno is not None
    assert node.end_lineno is not None
    head = lines[first - 1 : docstring.lineno - 1]
    tail = "".join(lines[docstring.end_lineno : node.end_lineno])
    blank = len(tail) - len(tail.lstrip())  # the empty lines that set a docstring off from the code
    source = textwrap.dedent("".join(head) + tail[tail.rfind("\n", 0, blank) + 1 :]).strip()
    return source if source.startswith(("def ", "async def ", "@")) else None


def _does_nothing(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        raised = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _is_usable(source: str, docstring: str) -> bool:
    return (
        SOURCE_CHARS[0] <= len(source) <= SOURCE_CHARS[1]
        and DOCSTRING_CHARS[0] <= len(docstring) <= DOCSTRING_CHARS[1]
        and sum(map(str.isascii, docstring)) >= ASCII_SHARE * len(docstring)
        and " " in docstring
    )
