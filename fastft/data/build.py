"""Records to a corpus, a chunk at a time: every sample counted, nothing dropped unless allowed and never in silence."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastft.data.formats import Format, normalise
from fastft.data.growing import Growing
from fastft.data.masking import Mask, Policy, Rendered
from fastft.data.objectives import Objective
from fastft.data.readers import RawRecord
from fastft.data.sample import Corpus, Example, Sample, Samples, Stats
from fastft.data.templates import Renderer

ON_EMPTY = ("error", "drop")
EXAMPLES = 8
CHUNK = 256  # records tokenised in one call, which the tokenizer spreads over threads
CHUNK_CHARS = 4 << 20  # or fewer, if they are as long as this together

T = TypeVar("T")
Chunk = tuple[int, list[T]]  # the number of the first record, and the records
Record = tuple[Rendered, str]  # a rendering and its origin


class NothingToLearn(ValueError):
    """A record, or a whole corpus, of which no token is to be learned."""


class Part(NamedTuple):
    """What became of a chunk of records; `examples` with the numbers of theirs."""

    records: int
    samples: Samples
    stats: Stats
    examples: list[tuple[int, Example]]


class Encoder:
    """Makes samples of a chunk of raw records. It can be sent to another process, and is the same there."""

    def __init__(
        self,
        tokenizer: Any,
        objective: Objective,
        format: Format,
        mask: Policy,
        on_empty: str,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._arguments = (tokenizer, objective, format, mask, on_empty, chat_template_kwargs)
        known = mask if isinstance(mask, Mask) else None
        self._renderer = Renderer(tokenizer, known, chat_template_kwargs)
        self._used = {*format.required, *format.optional, known and known.keep_field}

    def __reduce__(self) -> tuple[Callable[..., "Encoder"], tuple[Any, ...]]:
        return Encoder, self._arguments

    def __call__(self, chunk: Chunk[RawRecord]) -> Part:
        _, objective, format, mask, on_empty, _ = self._arguments
        first, records = chunk
        typed = zip(records, normalise(records, format), strict=True)
        rendered = [(self._renderer.render(record, raw.origin, raw.columns), raw.origin) for raw, record in typed]
        part = encode((first, rendered), objective, mask, on_empty)
        unused = Counter(name for raw in records for name in raw.columns if name not in self._used)
        part.stats.ignored_columns.update(unused)
        if isinstance(mask, Mask):
            part.stats.matched.update(Counter(p for record, _ in rendered for p in mask.patterns_in(record.text)))
        return part


def collect(parts: Iterable[Part], growing: Growing) -> Corpus:
    """The corpus of all parts, in order; `growing` takes its samples.

    Raises:
        NothingToLearn: nothing is left to learn from.
    """
    count, stats = 0, Stats()
    examples: list[tuple[int, Example]] = []
    for part in parts:
        growing.append(part.samples)
        add(stats, part.stats)
        count += part.records
        examples = [(index, example) for index, example in [*examples, *part.examples] if is_shown(index, count)]
    if not stats.samples:
        raise NothingToLearn(f"nothing is left to learn from: all {count} records were dropped\n{stats.summary()}")
    spread = [examples[len(examples) * place // EXAMPLES] for place in range(min(EXAMPLES, len(examples)))]
    if len(examples) <= EXAMPLES:
        spread = examples
    return Corpus(growing.finish(), stats, [example for _, example in spread])


def encode(chunk: Chunk[Record], objective: Objective, policy: Policy, on_empty: str) -> Part:
    """Samples, counts and candidate examples of the records of one chunk.

    Raises:
        NothingToLearn: a record has nothing to learn, and `on_empty` is "error".
    """
    first, records = chunk
    masked = [replace(rendered, learned=tuple(policy(rendered))) for rendered, _ in records]
    samples: list[Sample] = []
    documents: list[int] = []
    examples: list[tuple[int, Example]] = []
    stats = Stats()
    made = zip(records, objective.encode(masked), strict=True)
    for index, ((rendered, origin), encoded) in enumerate(made, start=first):
        if not encoded.samples:
            if on_empty == "error":
                raise NothingToLearn(_refusal(index, origin, rendered, encoded.reason))
            stats.drop(encoded.reason)
            continue
        for sample in encoded.samples:
            stats.add(sample, encoded.truncated)
        samples += encoded.samples
        documents += [index] * len(encoded.samples)
        if is_shown(index, index + 1) and (example := objective.example(rendered, origin)):
            examples.append((index, example))
    arrays = {**Samples.of(samples).arrays, "documents": np.asarray(documents, Samples.DTYPES["documents"])}
    return Part(len(records), Samples(arrays), stats, examples)


def is_shown(index: int, count: int) -> bool:
    """Whether a record may be an example: every one of up to 16, and with each doubling half of those.

    So that 9 to 16 are left, spread over all, however many there are: what is shown of `count` records was shown of
    fewer.
    """
    return index % (1 << max(0, (count - 1).bit_length() - 4)) == 0


def chunks(records: Iterable[T], size: Callable[[T], int]) -> Iterator[Chunk[T]]:
    """Records in chunks of bounded number and size. Where the seams are changes no result."""
    start, chunk, chars = 0, list[T](), 0
    for record in records:
        chunk.append(record)
        chars += size(record)
        if len(chunk) == CHUNK or chars >= CHUNK_CHARS:
            yield start, chunk
            start, chunk, chars = start + len(chunk), [], 0
    if chunk:
        yield start, chunk


def add(total: Stats, part: Stats) -> None:
    """Add the counts of a part to those of the whole."""
    for name in (field.name for field in fields(Stats)):
        value = getattr(part, name)
        if isinstance(value, dict):
            counted = getattr(total, name)
            for key, number in value.items():
                counted[key] = counted.get(key, 0) + number
        else:
            setattr(total, name, getattr(total, name) + value)


def check_on_empty(on_empty: str) -> None:
    if on_empty not in ON_EMPTY:
        raise ValueError(f"on_empty: got {on_empty!r}; one of {', '.join(ON_EMPTY)} is wanted")


def _refusal(index: int, origin: str, rendered: Rendered, reason: str) -> str:
    words = " ".join(rendered.opening.split())
    return (
        f"sample {index} ({origin}, {words!r}) has nothing to learn: {reason}. "
        "Correct the data or max_length, or drop such samples with on_empty='drop'"
    )
