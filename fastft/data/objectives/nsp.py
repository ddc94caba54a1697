"""Two segments of text: does the second follow the first (NSP), and are they in order (SOP)? Beside masked tokens."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from fastft.data.attention import bare
from fastft.data.batch import Batch, Piece, Target, lay_out
from fastft.data.draws import Draw
from fastft.data.encoding import encode
from fastft.data.masking import Rendered
from fastft.data.objectives.heads import RELATIONS, relation_output
from fastft.data.objectives.objective import NOTHING, Encoded
from fastft.data.objectives.sentences import ONE_DOCUMENT, other_document, segment_pairs, sentences
from fastft.data.objectives.special import frame
from fastft.data.objectives.token_masking import TokenMasking
from fastft.data.sample import Sample, Samples

NO_DOCUMENT = "sentences are taken from plain text, and this record is a prompt or a conversation"
ONE_SENTENCE = "it has fewer than two sentences"


class Segment(NamedTuple):
    """Tokens of one of two segments, and their weights."""

    ids: list[int]
    weights: list[float]


@dataclass
class SentencePair(TokenMasking):
    """What NSP and SOP have in common: samples, layout, masked tokens.

    A document is split into sentences: at . ! ? and at the ends of lines. They fill segments of at most half of the
    room that the special tokens leave in `max_length`, so that any two fit together and neither length nor an end cut
    off tells the label. A sample is a segment A, up to its `boundary`, and the segment B behind it; the special tokens
    are written, [CLS] A [SEP] B [SEP], when a batch is made. A sentence longer than a segment is cut up and counts as
    several. A document of one sentence makes no sample.

    There are two targets: the masked tokens of both segments, as in `MaskedLM`, and one label for each sample, with
    weight 1. The sum of the two means is the loss of `*ForPreTraining`.

    Attributes:
        mlm_weight: what the first mean is multiplied by in that sum. The head for masked tokens is often new, and its
            gradient then drowns that of the labels; less than 1 lets both be learned.
    """

    mlm_weight: float = 1.0

    auto_class: ClassVar[str] = "AutoModelForPreTraining"
    batch_options: ClassVar[tuple[str, ...]] = (*TokenMasking.batch_options, "mlm_weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mlm_weight < math.inf:
            raise ValueError(f"mlm_weight: got {self.mlm_weight}; a finite number above 0 is wanted")
        self._frame = frame(self.tokenizer, pair=True)
        self._output, self._relation = "prediction_logits", RELATIONS["next_sentence_label"]
        self._segment = (self.max_length - self._frame.size) // 2
        if self._segment < 1:
            raise ValueError(
                f"max_length: got {self.max_length}; at least {self._frame.size + 2} is wanted, a token of each segment"
                " and the special ones"
            )
        if not self._frame.between:
            raise ValueError(
                f"objective: {self.name!r} needs a separator, and the tokenizer {self.tokenizer.name_or_path!r} writes "
                "none between two texts; take that of BERT, ALBERT or the like"
            )

    def encode(self, records: Sequence[Rendered]) -> Iterator[Encoded]:
        texts = [replace(record, add_special_tokens=False, closed=False) for record in records]
        for record, (ids, given, offsets) in zip(records, encode(texts, self.tokenizer), strict=True):
            if not record.divisible:
                yield Encoded([], reason=NO_DOCUMENT)
                continue
            weights = self.learnable(ids, given)
            runs = sentences(record.text, offsets, self._segment)
            kept = [
                Sample(ids[start:end], weights[start:end].tolist(), boundary=middle - start)
                for (start, middle), (_, end) in segment_pairs(runs, self._segment)
                if weights[start:end].any()
            ]
            yield Encoded(kept, reason=ONE_SENTENCE if len(runs) < 2 and weights.any() else NOTHING)

    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        if any(len(row) != 1 for row in rows):
            raise ValueError(f"packing: {self.name!r} has one label for each row; set packing to false")
        pieces, labels = [], []
        for (index,) in rows:
            a, b, label = self._pair(samples, index, draw)
            pieces.append([self._piece(a, b, draw, index)])
            labels.append(label)
        batch = lay_out(pieces, self.pad_token_id, causal=False, multiple=multiple, output=self._output)
        tokens = replace(batch.targets[0], scale=self.mlm_weight)
        relation = Target(self._relation, torch.tensor(labels), torch.ones(len(labels)))
        return replace(batch, targets=(tokens, relation))

    @abstractmethod
    def _pair(self, samples: Samples, index: int, draw: Draw) -> tuple[Segment, Segment, int]:
        """A, B and the label of a sample in this epoch."""

    def _piece(self, a: Segment, b: Segment, draw: Draw, index: int) -> Piece:
        ids, weights = self._frame.ids(a.ids, b.ids), self._frame.weights(a.weights, b.weights)
        return self.masked(ids, weights, draw, index, self._frame.token_types(len(a.ids), len(b.ids)))

    def longest(self, samples: Samples) -> int:
        """The longest A and the longest B, which may meet, and the special tokens."""
        first = np.asarray(samples.arrays["boundaries"], np.int64)
        return int(first.max() + (samples.lengths - first).max()) + self._frame.size

    def outline(self, model: Any) -> None:
        """Find the output that tells the relation of two segments: `seq_relationship_logits` or `sop_logits`.

        Raises:
            ValueError: the model has no such head beside one for masked tokens, or an embedding smaller than the
                vocabulary.
        """
        super().outline(model)
        relation = relation_output(model)
        if relation is None:
            raise ValueError(
                f"model: {type(bare(model)).__name__} has no head for masked tokens and the relation of two segments; "
                f"objective {self.name!r} wants the ForPreTraining class of BERT, ALBERT, MegatronBert, MobileBert, "
                "ERNIE, FNet or BigBird"
            )
        self._relation = relation


@dataclass
class NextSentence(SentencePair):
    """Next-sentence prediction (BERT, Devlin et al. 2018). Label 0: B follows A; 1: B is of another document.

    Attributes:
        nsp_probability: of a B from another document: that of any of its samples, drawn for each sample and epoch.

    Raises:
        ValueError: a corpus of one document.
    """

    nsp_probability: float = 0.5

    name: ClassVar[str] = "nsp"
    batch_options: ClassVar[tuple[str, ...]] = (*SentencePair.batch_options, "nsp_probability")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.nsp_probability <= 1:
            raise ValueError(f"nsp_probability: got {self.nsp_probability}; at least 0 and at most 1 is wanted")

    def check(self, samples: Samples, name: str) -> None:
        """Refuse a corpus of one document."""
        if _of_one_document(samples):
            raise ValueError(f"{name}: {ONE_DOCUMENT}")

    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        if _of_one_document(samples):
            raise ValueError(f"objective: {ONE_DOCUMENT}")
        return super().batch(samples, rows, draw, multiple)

    def _pair(self, samples: Samples, index: int, draw: Draw) -> tuple[Segment, Segment, int]:
        rng = draw.random("nsp", index)
        a, b = _segments(samples[index])
        if rng.random() >= self.nsp_probability:
            return a, b, 0
        _, b = _segments(samples[other_document(samples.arrays["documents"], index, rng)])
        return a, b, 1


@dataclass
class SentenceOrder(SentencePair):
    """Sentence-order prediction (ALBERT, Lan et al. 2019). Label 0: A, then B; 1: swapped, with probability 1/2."""

    name: ClassVar[str] = "sop"

    def _pair(self, samples: Samples, index: int, draw: Draw) -> tuple[Segment, Segment, int]:
        a, b = _segments(samples[index])
        return (b, a, 1) if draw.random("sop", index).random() < 0.5 else (a, b, 0)


def _of_one_document(samples: Samples) -> bool:
    documents = samples.arrays["documents"]
    return bool(len(documents) and documents[0] == documents[-1] and (documents == documents[0]).all())


def _segments(sample: Sample) -> tuple[Segment, Segment]:
    ids, weights, end = sample.input_ids, sample.weights, sample.boundary
    return Segment(ids[:end], weights[:end]), Segment(ids[end:], weights[end:])
