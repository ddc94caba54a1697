"""Masked tokens, drawn anew in each epoch: what masked language modelling and sentence pairs have in common."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fastft.data.attention import bare
from fastft.data.batch import IGNORE_INDEX, Piece
from fastft.data.draws import EVALUATION, Draw
from fastft.data.objectives import selection
from fastft.data.objectives.heads import token_output
from fastft.data.objectives.objective import Objective
from fastft.data.objectives.special import ordinary_ids, special_ids
from fastft.data.objectives.words import WordStarts

MASKINGS = ("token", "whole_word", "span")


@dataclass
class TokenMasking(Objective):
    """Options of masking.

    Attributes:
        mlm_probability: share of the learned tokens that is predicted, in training.
        mlm_eval_probability: the same in evaluation, where masks never change; None: as in training.
        mask_replace_prob, random_replace_prob: of what is predicted, the share shown as the mask token and as a random
            token, which is never a special one; the rest is shown as it is. Drawn for each token, and for a span as a
            whole, as SpanBERT does.
        mlm_masking: `token`, `whole_word` or `span`.
        mlm_span_length: mean length of spans, in tokens, at most 10 of them.

    Raises:
        ValueError: an option out of range, a tokenizer without a mask token, or one that does not mark words.
    """

    mlm_probability: float = 0.15
    mlm_eval_probability: float | None = None
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    mlm_masking: str = "token"
    mlm_span_length: float = 3.0

    batch_options: ClassVar[tuple[str, ...]] = (
        "mlm_probability", "mlm_eval_probability", "mask_replace_prob", "random_replace_prob", "mlm_masking",
        "mlm_span_length",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_options()
        tokenizer = f"the tokenizer {self.tokenizer.name_or_path!r} ({type(self.tokenizer).__name__})"
        if self.tokenizer.mask_token_id is None:
            raise ValueError(
                f"objective: {self.name!r} needs a mask token, and {tokenizer} has none; take an encoder's (BERT, "
                "RoBERTa, ModernBERT, ...), or set tokenizer.mask_token"
            )
        if not self.tokenizer.is_fast:
            raise ValueError(f"objective: {self.name!r} needs a fast tokenizer, with a tokenizer.json; got {tokenizer}")
        self._output = "logits"
        self._special: Any = special_ids(self.tokenizer)
        self._ordinary: Any = ordinary_ids(self.tokenizer)
        self._words = WordStarts(self.tokenizer, self._special) if self.mlm_masking == "whole_word" else None
        self._span_lengths = selection.span_lengths(self.mlm_span_length)

    def _check_options(self) -> None:
        for key in ("mlm_probability", "mlm_eval_probability"):
            value = getattr(self, key)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{key}: got {value}; above 0 and at most 1 is wanted")
        shares = self.mask_replace_prob, self.random_replace_prob
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(
                f"mask_replace_prob, random_replace_prob: got {shares[0]} and {shares[1]}; neither below 0 and a sum "
                "of at most 1 is wanted"
            )
        if self.mlm_masking not in MASKINGS:
            raise ValueError(f"mlm_masking: got {self.mlm_masking!r}; one of {', '.join(MASKINGS)} is wanted")

    def learnable(self, ids: Any, weights: Any) -> Any:
        """The weights, (T,) float32, with 0 for special tokens, whoever wrote them: they are never predicted."""
        return np.where(np.isin(ids, self._special), 0, np.asarray(weights, np.float32))

    def masked(self, ids: Any, weights: Any, draw: Draw, index: int, token_types: Any = None) -> Piece:
        """The sample as a model is shown it in this epoch: T tokens, some of them masked, and those as labels.

        Only tokens with a weight are chosen, and at least one of those if there is any.
        """
        ids, weights = np.asarray(ids, np.int64), np.asarray(weights, np.float32)
        rng = draw.random("mlm", index)
        evaluates = draw.epoch == EVALUATION and self.mlm_eval_probability is not None
        p = self.mlm_eval_probability if evaluates else self.mlm_probability
        candidates = np.flatnonzero(weights)
        unit = self._select(ids, candidates, float(p or 0), rng)
        chosen, unit = candidates[unit >= 0], unit[unit >= 0]
        fate = rng.random(len(chosen))
        if self.mlm_masking == "span":
            fate = fate[np.searchsorted(unit, unit)]  # a span's is that of its first token
        shown = ids.copy()
        shown[chosen[fate < self.mask_replace_prob]] = self.tokenizer.mask_token_id
        random = chosen[(fate >= self.mask_replace_prob) & (fate < self.mask_replace_prob + self.random_replace_prob)]
        shown[random] = self._ordinary[rng.integers(len(self._ordinary), size=len(random))]
        labels, kept = np.full(len(ids), IGNORE_INDEX), np.zeros(len(ids), np.float32)
        labels[chosen], kept[chosen] = ids[chosen], weights[chosen]
        return Piece(shown, labels, kept, token_types=token_types)

    def _select(self, ids: Any, candidates: Any, p: float, rng: np.random.Generator) -> Any:
        if self._words is not None:
            return selection.words(np.cumsum(self._words(ids))[candidates], p, rng)
        if self.mlm_masking == "span":
            return selection.spans(len(candidates), p, self._span_lengths, rng)
        return selection.tokens(len(candidates), p, rng)

    def outline(self, model: Any) -> None:
        """Find the output with the logits of tokens, and refuse fewer embedding rows than the tokenizer has tokens."""
        super().outline(model)
        self._output = token_output(model)
        rows, largest = bare(model).get_input_embeddings().weight.shape[0], max(self.tokenizer.get_vocab().values())
        if largest >= rows:
            raise ValueError(
                f"model: its embedding has {rows} rows and the tokenizer's largest id is {largest}; use the model's "
                "own tokenizer, or model.resize_token_embeddings"
            )
