"""Span corruption, T5's objective: spans of a text are replaced by sentinels, and the decoder writes what was there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastft.data.batch import Batch
from fastft.data.draws import Draw
from fastft.data.masking import Rendered
from fastft.data.objectives.encoder_decoder import EncoderDecoder, Pair
from fastft.data.objectives.objective import NOTHING, Encoded
from fastft.data.parts import Part, PartTokens, encode_parts
from fastft.data.sample import Sample, Samples

SHORTEST = 3  # tokens that a block must be able to hold, so that none is left with a single one


class Noise(NamedTuple):
    """The share of tokens that is noise, and how many there are in a span of it on average."""

    density: float
    span_length: float

    def counts(self, length: int) -> tuple[int, int]:
        """Noise tokens and spans in a text of `length` >= 2 tokens: at least one of each, and one token that stays."""
        noise = min(max(round(length * self.density), 1), length - 1)
        return noise, max(1, min(round(noise / self.span_length), noise, length - noise))

    def mask(self, length: int, random: np.random.Generator) -> Any:
        """(length,) bool, True on noise.

        Lengths of spans, and of what lies between them, are drawn uniformly among those with the right sums. T5 begins
        each text with tokens that stay and ends it with noise; here it may begin and end with either, so that every
        place can be noise.
        """
        noise, spans = self.counts(length)
        inside = _composition(noise, spans, random)
        between = _composition(length - noise + 2, spans + 1, random)
        between[[0, -1]] -= 1
        lengths = np.insert(between, np.arange(1, spans + 1), inside)
        return np.repeat(np.arange(2 * spans + 1) % 2 == 1, lengths)

    def learned_mask(self, weights: Any, random: np.random.Generator) -> Any:
        """A mask with something to learn in its noise, given weights (length,): drawn again until there is."""
        mask = self.mask(len(weights), random)
        while not weights[mask].any():
            mask = self.mask(len(weights), random)
        return mask


@dataclass
class SpanCorruption(EncoderDecoder):
    """The encoder reads the text with each span of noise replaced by one sentinel, `<extra_id_0>` the first. The
    decoder learns each sentinel and what it stands for. Both end with the end token (T5 paper, section 3.1.4).

    Texts are cut into blocks from which no corruption makes more than `max_length` tokens or more spans than there are
    sentinels; only plain text has several blocks. A sentinel weighs as the heaviest token of its span, the end token
    as the heaviest of all. What is noise is drawn anew each epoch.

    Attributes:
        noise_density: share of the tokens that is noise.
        mean_noise_span_length: tokens in a span of it.
        sentinel: how the tokenizer calls its sentinels, with {} for 0, 1, ...
    """

    noise_density: float = 0.15
    mean_noise_span_length: float = 3.0
    sentinel: str = "<extra_id_{}>"

    name: ClassVar[str] = "span_corruption"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise_density < 1:
            raise ValueError(f"noise_density: got {self.noise_density}; a share between 0 and 1 is wanted")
        if not self.mean_noise_span_length >= 1:
            raise ValueError(f"mean_noise_span_length: got {self.mean_noise_span_length}; at least 1 is wanted")
        self._sentinels = _sentinels(self.tokenizer, self.sentinel)
        end = self.tokenizer.eos_token_id
        if end is None:
            raise ValueError("tokenizer: it has no end token, with which both sides of span corruption end")
        self._end = int(end)
        self.block_length = self._block_length()

    @property
    def noises(self) -> Sequence[Noise]:
        """What may be drawn."""
        return [Noise(self.noise_density, self.mean_noise_span_length)]

    @property
    def extra(self) -> int:
        """Tokens before the text of an encoder's input."""
        return 0

    def _block_length(self) -> int:
        length = 2
        while all(self._fits(length + 1, *noise.counts(length + 1)) for noise in self.noises):
            length += 1
        if length < SHORTEST:
            raise ValueError(
                f"max_length: got {self.max_length}, with {len(self._sentinels)} sentinels; not even {SHORTEST} tokens "
                f"fit, as {self.name} adds sentinels and an end token"
            )
        return length

    def _fits(self, length: int, noise: int, spans: int) -> bool:
        longer = max(self.extra + length - noise, noise) + spans + 1
        return longer <= self.max_length and spans <= len(self._sentinels)

    def encode(self, records: Sequence[Rendered]) -> Iterator[Encoded]:
        known = [bool(record.text) for record in records]
        parts = [Part(record, 0, len(record.text)) for record in records if record.text]
        tokens = encode_parts(parts, self.tokenizer, control=False)
        for record, there in zip(records, known, strict=True):
            yield self._blocks(record, next(tokens)) if there else Encoded([])

    def _blocks(self, record: Rendered, tokens: PartTokens) -> Encoded:
        ids, weights = tokens.ids, tokens.weights
        if len(ids) == 1:
            return Encoded([], reason="it is a single token, and nothing remains to tell it from")
        pieces = even_blocks(len(ids), self.block_length) if record.divisible else [(0, self.block_length)]
        kept = [Sample(ids[a:b], weights[a:b]) for a, b in pieces if any(weights[a:b])]
        cut = not record.divisible and len(ids) > self.block_length
        whole = f"max_length={self.max_length} cuts off all of its target" if cut and any(weights) else NOTHING
        return Encoded(kept, cut, whole)

    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        pairs = [self.pair(samples[index], draw.random(self.name, index)) for (index,) in rows]
        return self.pairs_batch(pairs, multiple)

    def pair(self, sample: Sample, random: np.random.Generator) -> Pair:
        """A corrupted sample and what its sentinels stand for."""
        return self.corrupted(sample, self.noises[0].learned_mask(np.asarray(sample.weights), random))

    def corrupted(self, sample: Sample, mask: Any, before: Sequence[int] = ()) -> Pair:
        """A sample whose noise, (T,) bool, is left out; `before` goes before what the encoder reads."""
        ids, weights = np.asarray(sample.input_ids), np.asarray(sample.weights)
        starts = mask & ~np.append(False, mask[:-1])  # (T,)
        names = self._sentinels[: starts.sum()]  # (spans,)
        source = np.where(starts, self._sentinels[np.cumsum(starts) - 1], ids)[starts | ~mask]
        first = np.flatnonzero(starts[mask])  # (spans,), in the noise alone
        target = np.insert(ids[mask], first, names)
        learned = np.insert(weights[mask], first, np.maximum.reduceat(weights[mask], first))
        return Pair(
            [*before, *source.tolist(), self._end],
            [*target.tolist(), self._end],
            [*learned.tolist(), float(learned.max())],
        )


def even_blocks(length: int, size: int) -> list[tuple[int, int]]:
    """[start, end) of pieces of `size` >= 3 that cover `length`, the last one shorter, but none of a single one."""
    starts = list(range(0, length, size))
    if length % size == 1 and len(starts) > 1:
        starts[-1] -= 1
    return list(zip(starts, [*starts[1:], length], strict=True))


def _composition(total: int, parts: int, random: np.random.Generator) -> Any:
    """(parts,) positive integers with this sum, all such lists alike likely."""
    cuts = np.sort(random.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def _sentinels(tokenizer: Any, pattern: str) -> Any:
    """(n,) ids of the sentinels that a tokenizer has, in order. mT5's SentencePiece writes them with a space before."""
    if "{}" not in pattern:
        raise ValueError(f"sentinel: got {pattern!r}; a name with {{}} for its number is wanted")
    known = tokenizer.get_vocab()
    for written in (pattern, f"\u2581{pattern}"):
        found: list[int] = []
        while (token := known.get(written.format(len(found)))) is not None:
            found.append(token)
        if found:
            return np.asarray(found)
    raise ValueError(
        f"tokenizer: {type(tokenizer).__name__} has no sentinel {pattern.format(0)!r}, by which span corruption marks "
        "what is left out; take T5's, add such tokens, or name others by sentinel"
    )
