"""Reading: a file, a folder or a built-in corpus, to records of named columns. Each remembers where it was."""

import difflib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastft.data import docstrings


class RawRecord(NamedTuple):
    """One record as read.

    Attributes:
        columns: name to value.
        origin: where it was: `file:line`, `file[index]` for JSON arrays, `file` for text.
        group: records of one group are never divided between training and evaluation; None: equal records are one.
    """

    columns: dict[str, Any]
    origin: str
    group: str | None = None


def read(source: str) -> Iterator[RawRecord]:
    """Records of a source, in order.

    Args:
        source: a `.jsonl`/`.ndjson` file (one object per line, blank lines skipped), a `.json` file (an array of
            objects), a `.txt`/`.md`/`.rst` file (one document, column `text`), a folder of such files (read recursively
            in the order of their names, hidden ones skipped), or a name of `BUILTINS`.

    Raises:
        FileNotFoundError: nothing is there; names the nearest thing that is.
        ValueError: unknown suffix or built-in name, binary file, text that is not UTF-8, JSON that is empty, does not
            parse or is not an object. Names file, line and column. (An empty text file is a record with nothing to
            learn, which the objective refuses or drops.)
    """
    if source.startswith("builtin:"):
        if source not in BUILTINS:
            raise ValueError(f"source: got {source!r}; the built-in corpora are {', '.join(BUILTINS)}")
        yield from BUILTINS[source]()
        return
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"source: {source!r} does not exist{_nearest(path)}")
    if path.is_dir():
        yield from _read_folder(path)
    elif path.suffix.lower() in READERS:
        yield from READERS[path.suffix.lower()](path)
    else:
        raise ValueError(f"source: {source!r} ends in {path.suffix!r}; known are {', '.join(READERS)}")


def _read_folder(folder: Path) -> Iterator[RawRecord]:
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in READERS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not paths:
        raise ValueError(f"source: folder '{folder}' has no file ending in {', '.join(READERS)}")
    for path in paths:
        yield from READERS[path.suffix.lower()](path)


def _read_text(path: Path) -> Iterator[RawRecord]:
    yield RawRecord({"text": _decode(path.read_bytes(), f"{path}")}, f"{path}")


def _read_json_lines(path: Path) -> Iterator[RawRecord]:
    empty = True
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                origin = f"{path}:{number}"
                yield RawRecord(_as_object(_parse(_decode(line, origin), f"{path}", number), origin), origin)
                empty = False
    if empty:
        raise ValueError(f"{path}: the file is empty; one JSON object per line is wanted")


def _read_json(path: Path) -> Iterator[RawRecord]:
    text = _decode(path.read_bytes(), f"{path}")
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; a JSON array of objects is wanted")
    records = _parse(text, f"{path}", 1)
    if not isinstance(records, list) or not records:
        kind = "an empty array" if records == [] else _kind(records)
        hint = "; if each line is an object of its own, name the file .jsonl" if isinstance(records, dict) else ""
        raise ValueError(f"{path}: an array of objects is wanted, got {kind}{hint}")
    for index, record in enumerate(records):
        origin = f"{path}[{index}]"
        yield RawRecord(_as_object(record, origin), origin)


def _decode(data: bytes, origin: str) -> str:
    if b"\0" in data:
        raise ValueError(f"{origin}: binary data (a zero byte at {data.index(0)}); UTF-8 text is wanted")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ValueError(
            f"{origin}: not UTF-8 text (byte 0x{data[error.start]:02x} at line {line}, byte column {column} of it)"
        ) from None


def _parse(text: str, path: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = ""
        if error.msg == "Extra data" and "\n" in text.strip():
            hint = " (one object per line? then name the file .jsonl)"
        raise ValueError(f"{path}:{line + error.lineno - 1}:{error.colno}: malformed JSON: {error.msg}{hint}") from None
    except RecursionError:
        raise ValueError(f"{path}:{line}: malformed JSON: nested too deeply") from None


def _as_object(value: Any, origin: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{origin}: an object with named columns is wanted, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _nearest(path: Path) -> str:
    """What the user may have meant: the closest name in the nearest folder that exists."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    missing = path.relative_to(folder).parts[0] if folder in path.parents else path.name
    names = [entry.name for entry in folder.iterdir()]
    close = difflib.get_close_matches(missing, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{folder / close[0]}'?"
    builtin = difflib.get_close_matches(f"{path}", list(BUILTINS), n=1, cutoff=0.6)
    return f"; did you mean {builtin[0]!r}?" if builtin else f"; nothing of a like name is in '{folder.absolute()}'"


def _read_docstrings() -> Iterator[RawRecord]:
    for pair in docstrings.pairs():
        yield RawRecord({"prompt": pair.prompt, "completion": pair.completion}, pair.origin, pair.module)


READERS: dict[str, Callable[[Path], Iterator[RawRecord]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".txt": _read_text,
    ".md": _read_text,
    ".rst": _read_text,
}

BUILTINS: dict[str, Callable[[], Iterator[RawRecord]]] = {"builtin:stdlib-docstrings": _read_docstrings}
