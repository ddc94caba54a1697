"""What a record's columns mean: the four record types and the formats that make them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastft.data.sources import RawRecord


@dataclass(frozen=True, slots=True)
class Text:
    """A document, learned from end to end."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A completion to be learned after a prompt."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """An output to be learned after an instruction and, perhaps, its input."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages with `role` and `content`; those of role `assistant` are to be learned."""

    messages: list[dict[str, Any]]


Record = Text | PromptCompletion | Instruction | Conversation


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write records. `make` takes the columns and the origin, which it names in its errors."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    make: Callable[[dict[str, Any], str], Record]


def pick(name: str, first: RawRecord) -> Format:
    """The format called `name`; `"auto"`: the only one whose required columns the first record has.

    Raises:
        ValueError: an unknown name; for `"auto"`, no format fits or several do.
    """
    if name in FORMATS:
        return FORMATS[name]
    if name != "auto":
        raise ValueError(f"format: got {name!r}; one of auto, {', '.join(FORMATS)} is wanted")
    fitting = [known for known in FORMATS.values() if set(known.required) <= set(first.columns)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(known.name for known in fitting)
        raise ValueError(f"{first.origin}: the columns fit several formats ({names}); say which by format=")
    accepted = "; ".join(f"{known.name}: {', '.join(known.required)}" for known in FORMATS.values())
    raise ValueError(f"{first.origin}: no format fits the columns {_names(first.columns)}. Accepted are {accepted}")


def normalise(records: Iterable[RawRecord], format: Format) -> Iterator[Record]:
    """One typed record for each raw one.

    Raises:
        ValueError: a column is missing or of the wrong type; names the record's origin.
    """
    for raw in records:
        missing = [column for column in format.required if column not in raw.columns]
        if missing:
            raise ValueError(
                f"{raw.origin}: no column {', '.join(map(repr, missing))}; found {_names(raw.columns)}, "
                f"and format {format.name!r} needs {', '.join(format.required)}"
            )
        yield format.make(raw.columns, raw.origin)


def _text(columns: dict[str, Any], origin: str) -> Text:
    return Text(_string(columns, "text", origin))


def _prompt_completion(columns: dict[str, Any], origin: str) -> PromptCompletion:
    return PromptCompletion(_string(columns, "prompt", origin), _string(columns, "completion", origin))


def _instruction(columns: dict[str, Any], origin: str) -> Instruction:
    extra = "" if columns.get("input") is None else _string(columns, "input", origin)
    return Instruction(_string(columns, "instruction", origin), extra, _string(columns, "output", origin))


def _messages(columns: dict[str, Any], origin: str) -> Conversation:
    messages = columns["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{origin}: column 'messages': a list of messages is wanted, got {_show(messages)}")
    for index, message in enumerate(messages):
        where = f"{origin}: message {index}"
        if not isinstance(message, dict):
            raise ValueError(f"{where}: an object with 'role' and 'content' is wanted, got {_show(message)}")
        if not {"role", "content"} <= set(message):
            raise ValueError(f"{where}: 'role' and 'content' are wanted, found {_names(message)}")
        _string(message, "role", where)
        _string(message, "content", where)
    return Conversation(messages)


def _string(columns: dict[str, Any], column: str, origin: str) -> str:
    value = columns[column]
    if not isinstance(value, str):
        raise ValueError(f"{origin}: {column!r}: a string is wanted, got {_show(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{origin}: {column!r}: half of a surrogate pair (U+{ord(value[error.start]):04X}) at character "
            f"{error.start} is no text"
        ) from None
    return value


def _names(columns: dict[str, Any]) -> str:
    return ", ".join(columns) or "(none)"


def _show(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:40] + '...'}"


FORMATS = {
    format.name: format
    for format in (
        Format("text", ("text",), (), _text),
        Format("prompt_completion", ("prompt", "completion"), (), _prompt_completion),
        Format("instruction", ("instruction", "output"), ("input",), _instruction),
        Format("messages", ("messages",), (), _messages),
    )
}
