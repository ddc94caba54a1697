"""What a record's columns mean: the five record types and the formats that make them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastft.data.columns import listed, messages, optional_string, string, tokens, turns
from fastft.data.readers import RawRecord


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
    """Messages with `role` and `content`; those of role `assistant` are to be learned.

    A message may also say `train: false` (nothing of it is learned) or `weight` (at least 0, of its tokens), and hold
    what else a chat template knows.
    """

    messages: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Tokenised:
    """T token ids and the weight of each, made elsewhere: neither rendered nor masked here."""

    input_ids: list[int]
    weights: list[float]


Record = Text | PromptCompletion | Instruction | Conversation | Tokenised


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
    name = ALIASES.get(name, name)
    if name in FORMATS:
        return FORMATS[name]
    if name != "auto":
        raise ValueError(f"format: got {name!r}; one of auto, {', '.join([*FORMATS, *ALIASES])} is wanted")
    fitting = [known for known in FORMATS.values() if set(known.required) <= set(first.columns)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(known.name for known in fitting)
        raise ValueError(f"{first.origin}: the columns fit several formats ({names}); say which by format=")
    accepted = "; ".join(f"{known.name}: {', '.join(known.required)}" for known in FORMATS.values())
    raise ValueError(f"{first.origin}: no format fits the columns {listed(first.columns)}. Accepted are {accepted}")


def normalise(records: Iterable[RawRecord], format: Format) -> Iterator[Record]:
    """One typed record for each raw one.

    Raises:
        ValueError: a column is missing or of the wrong type; names the record's origin.
    """
    for raw in records:
        missing = [column for column in format.required if column not in raw.columns]
        if missing:
            raise ValueError(
                f"{raw.origin}: no column {', '.join(map(repr, missing))}; found {listed(raw.columns)}, "
                f"and format {format.name!r} needs {', '.join(format.required)}"
            )
        yield format.make(raw.columns, raw.origin)


def _text(columns: dict[str, Any], origin: str) -> Text:
    return Text(string(columns, "text", origin))


def _prompt_completion(columns: dict[str, Any], origin: str) -> PromptCompletion | Conversation:
    """Two strings; or two lists of messages, as TRL has them: what the assistant says in the first is not learned."""
    if isinstance(columns["prompt"], list) and isinstance(columns["completion"], list):
        given = messages(columns, "prompt", origin)
        asked = [{"train": False, **message} if message["role"] == "assistant" else message for message in given]
        return Conversation([*asked, *messages(columns, "completion", origin)])
    return PromptCompletion(string(columns, "prompt", origin), string(columns, "completion", origin))


def _source_target(columns: dict[str, Any], origin: str) -> PromptCompletion:
    return PromptCompletion(string(columns, "source", origin), string(columns, "target", origin))


def _instruction(columns: dict[str, Any], origin: str) -> Instruction:
    given = optional_string(columns, "input", origin)
    return Instruction(string(columns, "instruction", origin), given, string(columns, "output", origin))


def _messages(columns: dict[str, Any], origin: str) -> Conversation:
    return Conversation(messages(columns, "messages", origin))


def _sharegpt(columns: dict[str, Any], origin: str) -> Conversation:
    system = optional_string(columns, "system", origin)
    opening = [{"role": "system", "content": system}] if system else []
    return Conversation([*opening, *turns(columns, "conversations", origin)])


def _tokens(columns: dict[str, Any], origin: str) -> Tokenised:
    return Tokenised(*tokens(columns, origin))


FORMATS = {
    format.name: format
    for format in (
        Format("text", ("text",), (), _text),
        Format("prompt_completion", ("prompt", "completion"), (), _prompt_completion),
        Format("instruction", ("instruction", "output"), ("input",), _instruction),
        Format("messages", ("messages",), (), _messages),
        Format("sharegpt", ("conversations",), ("system",), _sharegpt),
        Format("source_target", ("source", "target"), (), _source_target),
        Format("tokens", ("input_ids",), ("weights", "labels"), _tokens),
    )
}
ALIASES = {"alpaca": "instruction"}
