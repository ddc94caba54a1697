"""Values of columns, checked: each function returns what it was asked for, or says where it found what instead."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip
MAX_ID = 2**31 - 1
IGNORED = -100

Columns = Mapping[str, Any]
Message = dict[str, Any]


def string(columns: Columns, column: str, origin: str) -> str:
    value = columns[column]
    if not isinstance(value, str):
        raise ValueError(f"{origin}: {column!r}: a string is wanted, got {show(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{origin}: {column!r}: half of a surrogate pair (U+{ord(value[error.start]):04X}) at character "
            f"{error.start} is no text"
        ) from None
    return value


def optional_string(columns: Columns, column: str, origin: str) -> str:
    """The same, and empty for a column that is not there or null."""
    return "" if columns.get(column) is None else string(columns, column, origin)


def messages(columns: Columns, column: str, origin: str) -> list[Message]:
    """Messages with a `role`, a `content` and whatever else they have; `train` and `weight` are checked."""
    found = _list_of_objects(columns[column], column, origin, ("role", "content"))
    for index, message in enumerate(found):
        where = f"{origin}: message {index}"
        string(message, "role", where)
        string(message, "content", where)
        _check_weighting(message, where)
    return found


def turns(columns: Columns, column: str, origin: str) -> list[Message]:
    """Messages that were written as `from` and `value`, as ShareGPT does."""
    found = []
    for index, turn in enumerate(_list_of_objects(columns[column], column, origin, ("from", "value"))):
        where = f"{origin}: message {index}"
        speaker = string(turn, "from", where)
        if speaker not in SHAREGPT_ROLES:
            raise ValueError(f"{where}: 'from' is {speaker!r}; known are {', '.join(SHAREGPT_ROLES)}")
        _check_weighting(turn, where)
        rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
        found.append({**rest, "role": SHAREGPT_ROLES[speaker], "content": string(turn, "value", where)})
    return found


def tokens(columns: Columns, origin: str) -> tuple[list[int], list[float]]:
    """`input_ids` and a weight for each: `weights`, or 1 where `labels` repeats the token and 0 where it is -100."""
    ids = _numbers(columns, "input_ids", origin, int)
    if ids.size and not 0 <= ids.min() <= ids.max() <= MAX_ID:
        place = int(np.argmax((ids < 0) | (ids > MAX_ID)))
        raise ValueError(f"{origin}: 'input_ids': {ids[place]} at {place} is no token id")
    given = [name for name in ("weights", "labels") if columns.get(name) is not None]
    if len(given) == 2:
        raise ValueError(f"{origin}: 'weights' and 'labels' both say what is learned; give one of them")
    if not given:
        return ids.tolist(), [1.0] * len(ids)
    values = _numbers(columns, given[0], origin, int if given == ["labels"] else float)
    if len(values) != len(ids):
        raise ValueError(
            f"{origin}: {given[0]!r} has {len(values)} values for {len(ids)} input_ids; one each is wanted"
        )
    if given == ["labels"]:
        wrong = (values != ids) & (values != IGNORED)
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ValueError(
                f"{origin}: 'labels': {values[place]} at {place}, where input_ids has {ids[place]}; the same id or "
                f"{IGNORED} is wanted (labels are not shifted here)"
            )
        values = (values != IGNORED).astype(float)
    elif not (np.isfinite(values) & (values >= 0)).all():
        place = int(np.argmin(np.isfinite(values) & (values >= 0)))
        raise ValueError(f"{origin}: 'weights': {values[place]} at {place}; at least 0 and finite is wanted")
    return ids.tolist(), values.tolist()


def _list_of_objects(value: Any, column: str, origin: str, names: Sequence[str]) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{origin}: column {column!r}: a list of messages is wanted, got {show(value)}")
    wanted = " and ".join(map(repr, names))
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ValueError(f"{origin}: message {index}: an object with {wanted} is wanted, got {show(entry)}")
        if not set(names) <= set(entry):
            raise ValueError(f"{origin}: message {index}: {wanted} are wanted, found {listed(entry)}")
    return value


def _check_weighting(message: Message, where: str) -> None:
    train, weight = message.get("train"), message.get("weight")
    if train is not None and not isinstance(train, bool):
        raise ValueError(f"{where}: 'train': true or false is wanted, got {show(train)}")
    if weight is None:
        return
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(f"{where}: 'weight': a number of at least 0 is wanted, got {show(weight)}")


def _numbers(columns: Columns, column: str, origin: str, kind: type) -> Any:
    value = columns[column]
    array = np.asarray(value if isinstance(value, list) and value else ["no numbers"])
    if array.ndim != 1 or array.dtype.kind not in ("iu" if kind is int else "iuf"):
        words = "integers" if kind is int else "numbers"
        raise ValueError(f"{origin}: {column!r}: a list of {words} is wanted, got {show(value)}")
    return array.astype(np.int64 if kind is int else np.float64)


def listed(columns: Columns) -> str:
    return ", ".join(columns) or "(none)"


def show(value: Any) -> str:
    if value is None:
        return "null"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:40] + '...'}"
