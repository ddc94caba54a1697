"""What a run trains on: samples, and what was counted while they were made."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sequence, before anything random is done to it.

    Attributes:
        input_ids: T token ids.
        weights: T floats; `weights[i]` is the weight of learning token i, 0 where it is not learned. `weights[0]` is
            always 0 for causal language modelling, as nothing comes before it.
        boundary: tokens before it are given and those from it on follow: the end of a source, a prefix, or the first of
            two sentences; 0 where an objective knows no such thing.
        document: number of the record it was made from.

    Raises:
        ValueError: there is not one weight per token, or the boundary is outside [0, T].
    """

    input_ids: list[int]
    weights: list[float]
    boundary: int = 0
    document: int = 0

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.weights):
            raise ValueError(
                f"weights: got {len(self.weights)} for {len(self.input_ids)} input_ids; one per token is wanted"
            )
        if not 0 <= self.boundary <= len(self.input_ids):
            raise ValueError(f"boundary: got {self.boundary} for {len(self.input_ids)} input_ids")


class Samples(Sequence[Sample]):
    """n samples of T_0 .. T_{n-1} tokens in flat arrays, which may be mapped from a file larger than memory.

    Attributes:
        arrays: by name, as in `DTYPES`: `input_ids` and `weights`, (sum T,); `ends`, (n,), of each sample in those;
            `boundaries` and `documents`, (n,).
    """

    DTYPES = {"input_ids": "<i4", "weights": "<f4", "ends": "<i8", "boundaries": "<i4", "documents": "<i4"}  # noqa: RUF012

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "Samples":
        """The same samples, in arrays in memory."""
        kept = list(samples)
        columns = {
            "input_ids": [token for sample in kept for token in sample.input_ids],
            "weights": [weight for sample in kept for weight in sample.weights],
            "ends": np.cumsum([len(sample.input_ids) for sample in kept]),
            "boundaries": [sample.boundary for sample in kept],
            "documents": [sample.document for sample in kept],
        }
        return cls({name: np.asarray(columns[name], dtype) for name, dtype in cls.DTYPES.items()})

    def __len__(self) -> int:
        return len(self.arrays["ends"])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Samples.of(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        ends = self.arrays["ends"]
        span = slice(int(ends[place - 1]) if place else 0, int(ends[place]))
        return Sample(
            self.arrays["input_ids"][span].tolist(),
            self.arrays["weights"][span].tolist(),
            int(self.arrays["boundaries"][place]),
            int(self.arrays["documents"][place]),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Samples):
            return NotImplemented
        return all(np.array_equal(self.arrays[name], other.arrays[name]) for name in self.DTYPES)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def lengths(self) -> Any:
        """Tokens in each sample, (n,) int64."""
        return np.diff(self.arrays["ends"], prepend=0)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every token, weight and boundary, in order."""
        digest = hashlib.sha256()
        for name in self.DTYPES:
            digest.update(np.ascontiguousarray(self.arrays[name]).view(np.uint8).data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Example:
    """One sample as text, for showing and for generating: the prompt of its last target, and that target.

    Attributes:
        prompt: everything rendered before the target, control tokens included.
        completion: the target without control tokens.
        prompt_ids: tokens before the target's first, exactly as in the sample. Generate from these: tokenising `prompt`
            again may add or merge tokens.
        origin: where the record was read: `file:line`.
    """

    prompt: str
    completion: str
    prompt_ids: list[int]
    origin: str


@dataclass(slots=True)
class Stats:
    """Counts over a corpus.

    Attributes:
        samples, tokens, supervised_tokens: what is kept (supervised: weight other than 0).
        truncated: samples cut at `max_length` that still have something to learn.
        dropped: records left out with `on_empty="drop"`; `drop_reasons` splits the count by reason.
        ignored_columns: columns present in the data that the format does not use, with the number of records.
        matched: regular expressions of the mask, with the number of records that they match in.
    """

    samples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    drop_reasons: dict[str, int] = field(default_factory=dict)
    ignored_columns: dict[str, int] = field(default_factory=dict)
    matched: dict[str, int] = field(default_factory=dict)

    def add(self, sample: Sample, truncated: bool) -> None:
        """Count a sample that is kept."""
        self.samples += 1
        self.tokens += len(sample.input_ids)
        self.supervised_tokens += len(sample.weights) - sample.weights.count(0.0)
        self.truncated += truncated

    def drop(self, reason: str) -> None:
        """Count a record that is left out."""
        self.dropped += 1
        self.drop_reasons[reason] = self.drop_reasons.get(reason, 0) + 1

    def summary(self) -> str:
        """One line per fact, in words."""
        share = 100 * self.supervised_tokens / max(1, self.tokens)
        lines = [
            f"{self.samples:,} samples, {self.tokens:,} tokens, "
            f"{self.supervised_tokens:,} of them supervised ({share:.1f} %)"
        ]
        if self.truncated:
            lines.append(f"{self.truncated:,} samples cut at max_length")
        lines += [f"{count:,} records dropped: {reason}" for reason, count in self.drop_reasons.items()]
        if self.ignored_columns:
            columns = ", ".join(f"{name} ({count:,})" for name, count in sorted(self.ignored_columns.items()))
            lines.append(f"columns not used: {columns}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Corpus:
    """Samples in the order of their source, what was counted, and a few of them as text."""

    samples: Samples
    stats: Stats
    examples: list[Example]

    @property
    def lengths(self) -> list[int]:
        """Tokens in each sample, as `batches` takes them."""
        lengths: list[int] = self.samples.lengths.tolist()
        return lengths
