"""Causal language modelling: each token is predicted from those before it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fastft.data.attention import bare, is_causal
from fastft.data.batch import Batch, lay_out, shifted
from fastft.data.draws import Draw
from fastft.data.encoding import encode
from fastft.data.masking import Rendered, WeightedSpan, token_weights
from fastft.data.objectives.heads import token_output
from fastft.data.objectives.objective import NOTHING, Encoded, Objective, blocks
from fastft.data.sample import Example, Sample, Samples


@dataclass
class CausalLM(Objective):
    """Labels are the tokens themselves, one position on; the loss is that of `*ForCausalLM`.

    A document is cut into blocks of `max_length` tokens. Each block begins with the last token of the one before, as
    context: every token but a document's first is learned exactly once, the end token included, and the short last
    block is kept. Any other record is one sample, cut off at `max_length`. Tokens behind the last one learned are
    left out: none of the others sees them.

    A model that reads in both directions, such as BERT, is trained with a mask of who sees whom, and can take turns
    between this objective and others. It completes no prompts: transformers would let these be read both ways.
    """

    name: ClassVar[str] = "clm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    packs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._native: bool | None = None
        self._output = "logits"

    @property
    def generates(self) -> bool:
        return self._native is not False

    def encode(self, records: Sequence[Rendered]) -> Iterator[Encoded]:
        for record, (ids, weights, _) in zip(records, encode(records, self.tokenizer), strict=True):
            end = max((place + 1 for place, weight in enumerate(weights) if weight and place), default=0)
            pieces = list(blocks(end, self.max_length, 1)) if record.divisible else [(0, min(end, self.max_length))]
            kept = [self.sample(ids[a:b], weights[a:b]) for a, b in pieces if any(weights[a + 1 : b])]
            truncated = not record.divisible and end > self.max_length
            yield Encoded(
                kept, truncated, f"max_length={self.max_length} cuts off all of its target" if end else NOTHING
            )

    def sample(self, ids: list[int], weights: list[float]) -> Sample:
        return Sample(ids, [0.0, *weights[1:]])

    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        pieces = [[shifted(samples[i].input_ids, samples[i].weights) for i in row] for row in rows]
        return lay_out(
            pieces, self.pad_token_id, causal=True, native=self._native, multiple=multiple, output=self._output
        )

    def outline(self, model: Any) -> None:
        """Find the output with the logits of tokens.

        Raises:
            ValueError: an encoder-decoder.
        """
        super().outline(model)
        inner = bare(model)
        if getattr(inner.config, "is_encoder_decoder", False):
            raise ValueError(
                f"model: {type(inner).__name__} is an encoder-decoder; objective {self.name!r} trains a single stack, "
                "'seq2seq', 'span_corruption' and 'ul2' train these"
            )
        self._output = token_output(inner)

    def prepare(self, model: Any) -> None:
        """See whether the model is causal by itself; one that is not is made so by a mask of who sees whom."""
        super().prepare(model)
        self._native = is_causal(model, self.tokenizer, self._output)

    def example(self, rendered: Rendered, origin: str) -> Example | None:
        """The record's last target; None for a document, or where there is no prompt to generate from."""
        if rendered.divisible or not rendered.targets:
            return None
        (ids, _, offsets), *_ = encode([rendered], self.tokenizer)
        start, end = rendered.targets[-1][:2]
        on_target = token_weights(offsets, [WeightedSpan(start, end, 1.0)])
        target = [place for place, weight in enumerate(on_target) if weight]
        if not target or not target[0] or len(ids) > self.max_length:
            return None
        completion = self.tokenizer.decode([ids[place] for place in target], skip_special_tokens=True)
        return Example(rendered.text[:start], str(completion).strip(), ids[: target[0]], origin)
