"""Messages of a conversation: what they say, and what they say of their own training."""

from collections.abc import Iterator, Sequence
from typing import Any

Message = dict[str, Any]


def spoken(messages: Sequence[Message]) -> tuple[list[Message], list[float | None]]:
    """Messages without their keys `train` and `weight`, which no template is to see, and the weight of each.

    The weight is 0 with `train: false`, 1 with `train: true` alone, and None where a message says neither.
    """
    bare = [{key: value for key, value in message.items() if key not in ("train", "weight")} for message in messages]
    return bare, [_weight(message.get("train"), message.get("weight")) for message in messages]


def _weight(train: bool | None, weight: float | None) -> float | None:
    if train is False:
        return 0.0
    if weight is None:
        return None if train is None else 1.0
    return float(weight)


def content(message: Message) -> str:
    """What is said; empty for a message that only calls tools."""
    return message.get("content") or ""


def speaks(message: Message) -> bool:
    """Whether it is the assistant's, which a model is prompted for."""
    return bool(message["role"] == "assistant")


def strings(value: Any) -> Iterator[str]:
    """Every string in it that a template could write, keys of objects left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
