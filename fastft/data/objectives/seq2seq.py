"""Sequence to sequence: an encoder reads the source, a decoder learns the target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fastft.data.batch import Batch
from fastft.data.draws import Draw
from fastft.data.masking import Rendered
from fastft.data.objectives.encoder_decoder import EncoderDecoder, Pair
from fastft.data.objectives.objective import NOTHING, Encoded
from fastft.data.parts import Part, PartTokens, encode_parts
from fastft.data.sample import Example, Sample, Samples


@dataclass
class Seq2Seq(EncoderDecoder):
    """The loss is that of `*ForConditionalGeneration` and `EncoderDecoderModel`.

    The source is the text before a record's only target. Each is tokenised on its own, as the tokenizer does it for
    its model: `tokenizer(source)` and `tokenizer(text_target=target)`, with control tokens and languages. A mask says
    what of the target is learned; an encoder learns nothing.

    Attributes:
        max_length: tokens of a source at most; longer ones are cut, and counted as truncated.
        max_target_length: the same of a target; by default `max_length`.
    """

    max_target_length: int | None = None

    name: ClassVar[str] = "seq2seq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_limit < 1:
            raise ValueError(f"max_target_length: got {self.max_target_length}; at least 1 is wanted")

    @property
    def generates(self) -> bool:
        return True

    @property
    def target_limit(self) -> int:
        """Tokens of a target at most."""
        return self.max_length if self.max_target_length is None else self.max_target_length

    def encode(self, records: Sequence[Rendered]) -> Iterator[Encoded]:
        problems = [_problem(record) for record in records]
        pairs = self._tokens([record for record, problem in zip(records, problems, strict=True) if not problem])
        for problem in problems:
            yield Encoded([], reason=problem) if problem else self._sample(*next(pairs))

    def _tokens(self, records: Sequence[Rendered]) -> Iterator[tuple[PartTokens, PartTokens]]:
        sources = (Part(record, 0, record.targets[0].start) for record in records)
        targets = (Part(record, *record.targets[0]) for record in records)
        return zip(
            encode_parts(sources, self.tokenizer), encode_parts(targets, self.tokenizer, target=True), strict=True
        )

    def _sample(self, source: PartTokens, target: PartTokens) -> Encoded:
        given, wanted = source.cut(self.max_length), target.cut(self.target_limit)
        if len(given.ids) > self.max_length or not given.text_length:
            return Encoded([], True, f"max_length={self.max_length} cuts off all of its source")
        if not any(target.weights):
            return Encoded([])
        if len(wanted.ids) > self.target_limit or not any(wanted.weights):
            return Encoded([], True, f"max_target_length={self.target_limit} cuts off all of its target")
        sample = Sample(given.ids + wanted.ids, [0.0] * len(given.ids) + wanted.weights, len(given.ids))
        return Encoded([sample], given is not source or wanted is not target)

    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        return self.pairs_batch([_pair(samples[index]) for (index,) in rows], multiple)

    def _answer(self, sample: Sample) -> tuple[int, int]:
        """The target, also where not all of it is learned."""
        return sample.boundary, len(sample.input_ids)

    def example(self, rendered: Rendered, origin: str) -> Example | None:
        """The record's source and target; None where there is none, or the source would be cut."""
        if _problem(rendered):
            return None
        ((source, target),) = self._tokens([rendered])
        if len(source.ids) > self.max_length:
            return None
        completion = self.tokenizer.decode(target.ids, skip_special_tokens=True)
        return Example(rendered.text[: rendered.targets[0].start], str(completion).strip(), source.ids, origin)


def _pair(sample: Sample) -> Pair:
    end = sample.boundary
    return Pair(sample.input_ids[:end], sample.input_ids[end:], sample.weights[end:])


def _problem(record: Rendered) -> str:
    """Why a record is no pair of source and target; empty if it is one."""
    if record.divisible:
        return "it is plain text, and seq2seq wants a source and a target: prompt and completion, for example"
    if not record.targets:
        return NOTHING
    if len(record.targets) > 1:
        return "it has several targets, and seq2seq learns one: make a record of each turn"
    if not record.text[: record.targets[0].start].strip():
        return "its source is empty"
    return ""
