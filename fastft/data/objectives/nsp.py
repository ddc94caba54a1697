"""Two segments of text: does the second follow the first (NSP), and are they in order (SOP)? Beside masked tokens."""

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch

from fastft.data.attention import bare
from fastft.data.batch import Batch, Piece, Target, lay_out
from fastft.data.draws import Draw
from fastft.data.encoding import encode
from fastft.data.masking import Rendered
from fastft.data.objectives.mlm import check_positions
from fastft.data.objectives.objective import NOTHING, Encoded
from fastft.data.objectives.sentences import ONE_DOCUMENT, other_document, segment_pairs, sentences
from fastft.data.objectives.special import frame
from fastft.data.objectives.token_masking import TokenMasking
from fastft.data.sample import Sample, Samples

# the argument that holds the labels in transformers, and the output that they are of
RELATIONS = {"next_sentence_label": "seq_relationship_logits", "sentence_order_label": "sop_logits"}

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
    """

    auto_class: ClassVar[str] = "AutoModelForPreTraining"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._frame = frame(self.tokenizer, pair=True)
        self._relation = RELATIONS["next_sentence_label"]
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
        batch = lay_out(pieces, self.pad_token_id, causal=False, multiple=multiple, output="prediction_logits")
        relation = Target(self._relation, torch.tensor(labels), torch.ones(len(labels)))
        return replace(batch, targets=(*batch.targets, relation))

    @abstractmethod
    def _pair(self, samples: Samples, index: int, draw: Draw) -> tuple[Segment, Segment, int]:
        """A, B and the label of a sample in this epoch."""

    def _piece(self, a: Segment, b: Segment, draw: Draw, index: int) -> Piece:
        ids, weights = self._frame.ids(a.ids, b.ids), self._frame.weights(a.weights, b.weights)
        return self.masked(ids, weights, draw, index, self._frame.token_types(len(a.ids), len(b.ids)))

    def prepare(self, model: Any) -> None:
        """Find the output that tells the relation of two segments: `seq_relationship_logits` or `sop_logits`.

        Raises:
            ValueError: the model has no such head beside one for masked tokens, too few positions, or an embedding
                smaller than the vocabulary.
        """
        super().prepare(model)
        inner = bare(model)
        arguments = inspect.signature(inner.forward).parameters
        outputs = [output for argument, output in RELATIONS.items() if {argument, "labels"} <= arguments.keys()]
        if not outputs:
            raise ValueError(
                f"model: {type(inner).__name__} has no head for masked tokens and the relation of two segments; "
                f"objective {self.name!r} wants the ForPreTraining class of BERT, ALBERT, MegatronBert, MobileBert, "
                "ERNIE, FNet or BigBird"
            )
        self._relation = outputs[0]
        check_positions(inner, self.max_length)


@dataclass
class NextSentence(SentencePair):
    """Next-sentence prediction (BERT, Devlin et al. 2018). Label 0: B follows A; 1: B is of another document.

    Attributes:
        nsp_probability: of a B from another document: that of any of its samples, drawn for each sample and epoch.

    Raises:
        ValueError: on the first batch, a corpus of one document.
    """

    nsp_probability: float = 0.5

    name: ClassVar[str] = "nsp"
    batch_options: ClassVar[tuple[str, ...]] = (*TokenMasking.batch_options, "nsp_probability")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.nsp_probability <= 1:
            raise ValueError(f"nsp_probability: got {self.nsp_probability}; at least 0 and at most 1 is wanted")

    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        documents = samples.arrays["documents"]
        if len(documents) and documents[0] == documents[-1] and (documents == documents[0]).all():
            raise ValueError(ONE_DOCUMENT)
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


def _segments(sample: Sample) -> tuple[Segment, Segment]:
    ids, weights, end = sample.input_ids, sample.weights, sample.boundary
    return Segment(ids[:end], weights[:end]), Segment(ids[end:], weights[end:])
