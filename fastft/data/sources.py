"""Reading: a file, a folder, a data set or a built-in corpus, to records of named columns."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastft.data import cmudict, docstrings, hub, stdlib_docs
from fastft.data.readers import READERS, RawRecord

__all__ = ["BUILTINS", "RawRecord", "Source", "read"]


class Builtin(NamedTuple):
    """A corpus that is made here of installed files: its records, and those files."""

    records: Callable[[], Iterator[RawRecord]]
    files: Callable[[], list[Path]]


BUILTINS = {
    "builtin:stdlib-docstrings": Builtin(docstrings.records, docstrings.files),
    "builtin:stdlib-docs": Builtin(stdlib_docs.records, docstrings.files),
    "builtin:cmudict": Builtin(cmudict.records, cmudict.files),
}


@dataclass(frozen=True)
class Source:
    """A source by name, to be read as often as it is iterated over, each time from its beginning."""

    name: str

    def __iter__(self) -> Iterator[RawRecord]:
        return read(self.name)

    def files(self) -> list[Path] | None:
        """Every file that decides what is read, in order; None where only reading shows it (a data set of the hub).

        Raises:
            FileNotFoundError, ValueError: as `read`.
        """
        if self.name.startswith("builtin:"):
            return _builtin(self.name).files()
        if self.name.startswith(hub.PREFIX):
            folder = Path(hub.parts(self.name)[0]).expanduser()
            return _files_under(folder) if hub.is_saved(folder) else None
        path = _existing(self.name)
        if not path.is_dir():
            return [path]
        return _files_under(path) if hub.is_saved(path) else _readable(path)


def read(source: str) -> Iterator[RawRecord]:
    """Records of a source, in order.

    Args:
        source: one of
            a `.jsonl`/`.ndjson` file (one object per line, blank lines skipped);
            a `.json` file (an array of objects; held in memory while it is read);
            a `.csv` or `.tsv` file (a line of column names, then rows of strings);
            a `.parquet` file (needs pyarrow);
            a `.txt`/`.md`/`.rst` file (one document, column `text`);
            a folder of such files (read recursively in the order of their names, hidden ones skipped);
            a folder that `save_to_disk` of the package `datasets` wrote, or `hf:name[:config][:split]`, such a folder
            or a data set of the hub (needs datasets; the split is `train` unless said);
            a name of `BUILTINS`.

    Raises:
        FileNotFoundError: nothing is there; names the nearest thing that is.
        ImportError: a package is missing; says which.
        ValueError: unknown suffix or built-in name, binary file, text that is not UTF-8, an empty file, JSON that does
            not parse or is not an object, rows that do not fit their header. Names file, line and, for JSON, column.
            (An empty text file is a record with nothing to learn, which the objective refuses or drops.)
    """
    if source.startswith("builtin:"):
        yield from _builtin(source).records()
        return
    if source.startswith(hub.PREFIX):
        yield from hub.read(source)
        return
    path = _existing(source)
    if not path.is_dir():
        yield from READERS[path.suffix.lower()](path)
    elif hub.is_saved(path):
        yield from hub.read(f"{hub.PREFIX}{path}")
    else:
        for file in _readable(path):
            yield from READERS[file.suffix.lower()](file)


def _builtin(name: str) -> Builtin:
    if name not in BUILTINS:
        raise ValueError(f"source: got {name!r}; the built-in corpora are {', '.join(BUILTINS)}")
    return BUILTINS[name]


def _existing(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"source: {source!r} does not exist{_nearest(path)}")
    if not path.is_dir() and path.suffix.lower() not in READERS:
        raise ValueError(f"source: {source!r} ends in {path.suffix!r}; known are {', '.join(READERS)}")
    return path


def _readable(folder: Path) -> list[Path]:
    paths = [path for path in _files_under(folder) if path.suffix.lower() in READERS]
    if not paths:
        raise ValueError(f"source: folder '{folder}' has no file ending in {', '.join(READERS)}")
    return paths


def _files_under(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


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
