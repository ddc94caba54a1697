"""What a run trains on: samples, and what was counted while they were made."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sequence.

    Attributes:
        input_ids: T token ids.
        weights: T floats; `weights[i]` is the weight of predicting token i from the tokens before it, 0 where it is
            not learned. `weights[0]` is always 0 for causal language modelling, as nothing comes before it.

    Raises:
        ValueError: the two lengths differ.
    """

    input_ids: list[int]
    weights: list[float]

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.weights):
            raise ValueError(
                f"weights: got {len(self.weights)} for {len(self.input_ids)} input_ids; one per token is wanted"
            )


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
    """

    samples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    drop_reasons: dict[str, int] = field(default_factory=dict)
    ignored_columns: dict[str, int] = field(default_factory=dict)

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


@dataclass(frozen=True, slots=True)
class Corpus:
    """Samples in the order of their source, what was counted, and a few of them as text."""

    samples: list[Sample]
    stats: Stats
    examples: list[Example]

    @property
    def lengths(self) -> list[int]:
        """Tokens in each sample, as `batches` takes them."""
        return [len(sample.input_ids) for sample in self.samples]
