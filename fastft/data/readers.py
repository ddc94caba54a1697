"""Files to records of named columns, one reader for each suffix. All of them but `.json` and text stream."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastft.dispatch import optional

ROWS = 1024  # of a Parquet file, made Python objects at a time
FIELD_CHARS = 2**31 - 1  # of a CSV field at most; the csv module's own limit, 131072, is less than a document


class RawRecord(NamedTuple):
    """One record as read.

    Attributes:
        columns: name to value.
        origin: where it was: `file:line`, `file[index]` for JSON arrays and tables, `file` for text.
        group: records of one group are never divided between training and evaluation; None: equal records are one.
    """

    columns: dict[str, Any]
    origin: str
    group: str | None = None


def _read_text(path: Path) -> Iterator[RawRecord]:
    yield RawRecord({"text": _decode(path.read_bytes(), f"{path}")}, f"{path}")


def _read_json_lines(path: Path) -> Iterator[RawRecord]:
    empty = True
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                origin = f"{path}:{number}"
                text = _decode(line.rstrip(b"\r\n"), origin)
                yield RawRecord(_as_object(_parse(text, f"{path}", number), origin), origin)
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


def _read_comma_separated(path: Path) -> Iterator[RawRecord]:
    yield from _read_separated(path, ",")


def _read_tab_separated(path: Path) -> Iterator[RawRecord]:
    yield from _read_separated(path, "\t")


def _read_separated(path: Path, delimiter: str) -> Iterator[RawRecord]:
    """Rows under a header; every value is a string. A row's line is the one that it begins on."""
    csv.field_size_limit(FIELD_CHARS)
    header: list[str] = []
    empty = True
    with path.open("rb") as file:
        lines = (_decode(line, f"{path}:{number}") for number, line in enumerate(file, start=1))
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        line = 1
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise ValueError(f"{path}:{line}: malformed CSV in the row that begins here: {error}") from None
            if row is None:
                break
            if row and not header:
                header = _header(row, f"{path}:{line}")
            elif row:
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}:{line}: {len(row)} fields where the header has {len(header)} ({', '.join(header)}); "
                        "quote fields that hold the separator or a line break"
                    )
                yield RawRecord(dict(zip(header, row, strict=True)), f"{path}:{line}")
                empty = False
            line = rows.line_num + 1
    if empty:
        raise ValueError(f"{path}: the file has no rows; a line of column names and then one row per record is wanted")


def _header(names: list[str], origin: str) -> list[str]:
    wrong = sorted({name for name in names if not name.strip() or names.count(name) > 1})
    if wrong:
        raise ValueError(
            f"{origin}: the first line names the columns; {', '.join(map(repr, wrong))} is empty or there twice"
        )
    return names


def _read_parquet(path: Path) -> Iterator[RawRecord]:
    pyarrow = optional("pyarrow", f"source {str(path)!r}")
    parquet = optional("pyarrow.parquet", f"source {str(path)!r}")
    try:
        with parquet.ParquetFile(path) as file:
            if not file.metadata.num_rows:
                raise ValueError(f"{path}: the table has no rows")
            index = 0
            for batch in file.iter_batches(batch_size=ROWS):
                for columns in batch.to_pylist():
                    yield RawRecord(columns, f"{path}[{index}]")
                    index += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file: {_first_line(error)}") from None


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
        what = error.msg.removesuffix(" at").removesuffix(" starting")
        raise ValueError(f"{path}:{line + error.lineno - 1}:{error.colno}: malformed JSON: {what}{hint}") from None
    except RecursionError:
        raise ValueError(f"{path}:{line}: malformed JSON: nested too deeply") from None


def _as_object(value: Any, origin: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{origin}: an object with named columns is wanted, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


READERS: dict[str, Callable[[Path], Iterator[RawRecord]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_comma_separated,
    ".tsv": _read_tab_separated,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".md": _read_text,
    ".rst": _read_text,
}
