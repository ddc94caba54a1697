"""Masked language modelling: tokens that are hidden are told from those on both sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fastft.data.attention import bare
from fastft.data.batch import Batch, Piece, lay_out
from fastft.data.draws import Draw
from fastft.data.encoding import encode
from fastft.data.masking import Rendered
from fastft.data.objectives.objective import NOTHING, Encoded, blocks
from fastft.data.objectives.special import BARE, frame
from fastft.data.objectives.token_masking import TokenMasking
from fastft.data.positions import first_position
from fastft.data.sample import Sample, Samples


@dataclass
class MaskedLM(TokenMasking):
    """Labels are the tokens that were chosen, at their own places; the loss is that of `*ForMaskedLM`.

    A document is cut into blocks, each with the special tokens of the tokenizer around it and at most `max_length`
    tokens with them; the short last one is kept. Any other record is one sample, cut off at `max_length`. Which tokens
    are chosen, and what is shown in their place, is drawn for each sample and epoch when a batch is made. See
    `TokenMasking` for the options.
    """

    name: ClassVar[str] = "mlm"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    packs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._frame = frame(self.tokenizer)
        self._first_position = 0
        if self.max_length <= self._frame.size:
            raise ValueError(
                f"max_length: got {self.max_length}; more is wanted than the {self._frame.size} special tokens that "
                "the tokenizer adds"
            )

    def encode(self, records: Sequence[Rendered]) -> Iterator[Encoded]:
        texts = [replace(record, add_special_tokens=False, closed=False) for record in records]
        for record, (ids, given, _) in zip(records, encode(texts, self.tokenizer), strict=True):
            weights = self.learnable(ids, given)
            around = self._frame if record.add_special_tokens else BARE
            room = self.max_length - around.size
            pieces = list(blocks(len(ids), room)) if record.divisible else [(0, min(len(ids), room))]
            kept = [
                Sample(around.ids(ids[a:b]), around.weights(weights[a:b].tolist()))
                for a, b in pieces
                if weights[a:b].any()
            ]
            cut = f"max_length={self.max_length} cuts off all of its target"
            yield Encoded(kept, not record.divisible and len(ids) > room, cut if weights.any() else NOTHING)

    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        pieces = [[self._piece(samples[index], index, draw) for index in row] for row in rows]
        batch = lay_out(pieces, self.pad_token_id, causal=False, multiple=multiple, output=self._output)
        if "position_ids" in batch.inputs:
            batch.inputs["position_ids"] += self._first_position
        return batch

    def _piece(self, sample: Sample, index: int, draw: Draw) -> Piece:
        return self.masked(sample.input_ids, sample.weights, draw, index)

    def outline(self, model: Any) -> None:
        """Take from the model where its positions begin.

        Raises:
            ValueError: an encoder-decoder, or an embedding smaller than the vocabulary.
        """
        super().outline(model)
        inner = bare(model)
        if getattr(inner.config, "is_encoder_decoder", False):
            raise ValueError(
                f"model: {type(inner).__name__} is an encoder-decoder, whose decoder sees what is hidden from the "
                f"encoder; objective {self.name!r} trains encoders, 'span_corruption' trains these"
            )
        self._first_position = first_position(inner)
