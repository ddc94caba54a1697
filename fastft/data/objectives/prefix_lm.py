"""Prefix language modelling: a causal model whose prompt is read in both directions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from fastft.data.attention import PLAIN, REFUSALS, asking, bare, fitted, forward, layer_kinds, ordinary_tokens, window
from fastft.data.batch import Batch, Piece, lay_out, shifted
from fastft.data.draws import Draw
from fastft.data.masking import Rendered
from fastft.data.objectives.clm import CausalLM
from fastft.data.objectives.objective import Encoded, learned_runs
from fastft.data.sample import Sample, Samples

PREFIX = 4  # tokens of the prefix by which a model is tried
SEEN = 1e-5  # of the largest change of a logit: more is seen, less is not


@dataclass
class PrefixLM(CausalLM):
    """As causal language modelling, but the positions of a prefix see each other (T5 paper, section 3.2.1).

    The prefix of a prompt and completion, or of a conversation, ends before the first token learned. That of a block of
    plain text is drawn anew each epoch, uniformly among the lengths that leave something to learn; only what follows it
    is learned.
    """

    name: ClassVar[str] = "prefix_lm"
    prompts_at_once: ClassVar[int | None] = 1

    def encode(self, records: Sequence[Rendered]) -> Iterator[Encoded]:
        for record, made in zip(records, super().encode(records), strict=True):
            if record.divisible:  # boundary 0: to be drawn
                yield made
            else:
                yield made._replace(samples=[replace(kept, boundary=_learned(kept)[0]) for kept in made.samples])

    def batch(self, samples: Samples, rows: Sequence[Sequence[int]], draw: Draw, multiple: int = 1) -> Batch:
        pieces = [[self._piece(samples[index], index, draw) for index in row] for row in rows]
        return lay_out(pieces, self.pad_token_id, causal=True, multiple=multiple, output=self._output)

    def _piece(self, sample: Sample, index: int, draw: Draw) -> Piece:
        end = sample.boundary or int(draw.random(self.name, index).integers(1, _learned(sample)[-1] + 1))
        weights = np.asarray(sample.weights)
        weights[:end] = 0.0
        return shifted(sample.input_ids, weights.tolist(), prefix=end)

    def prompted(self, model: Any, prompts: dict[str, Any]) -> dict[str, Any]:
        return prefilled(model, prompts["input_ids"])

    def _answer(self, sample: Sample) -> tuple[int, int]:
        """What the prefix, which is read in both directions, is followed by."""
        runs = learned_runs(sample)
        return next((run for run in runs if run[0] == sample.boundary), None) or super()._answer(sample)

    def outline(self, model: Any) -> None:
        """See that the model has no layers in which a prefix cannot be read in both directions.

        Raises:
            ValueError: an encoder-decoder, recurrent layers, or sliding windows shorter than `max_length`.
        """
        super().outline(model)
        config = bare(model).config.get_text_config()
        others = sorted(layer_kinds(config) - PLAIN)
        if others:
            raise self._refusal(model, f"has layers of {', '.join(others)}, which read from left to right only")
        width = window(config)
        if width is not None and width < self.max_length:
            raise self._refusal(
                model, f"has sliding windows of {width} tokens; max_length, now {self.max_length}, can be {width} then"
            )

    def prepare(self, model: Any) -> None:
        """See that the model reads a prefix in both directions, and nothing else.

        Raises:
            ValueError: as `outline`, or it does not heed the mask.
        """
        self.outline(model)
        try:
            problem = self._problem(model)
        except REFUSALS as error:
            problem = f"takes no mask of a prefix: {' '.join(str(error).split())[:200]}"
        if problem:
            raise self._refusal(model, problem)
        super().prepare(model)

    def _problem(self, model: Any) -> str | None:
        """Change the last token of a prefix, then one after it, and see which logits change."""
        *ids, first, second = ordinary_tokens(self.tokenizer, PREFIX + 6)
        plain = self._logits(model, ids)
        of_prefix = (plain - self._logits(model, [*ids[: PREFIX - 1], first, *ids[PREFIX:]])).abs()  # (T, V)
        of_rest = (plain - self._logits(model, [*ids[: PREFIX + 1], second, *ids[PREFIX + 2 :]])).abs()
        if not float(of_prefix[0].max()) > SEEN * float(of_prefix.max()):
            return "does not let the first token of a prefix see the last one"
        if not float(of_rest[: PREFIX + 1].max()) <= SEEN * float(of_rest.max()):
            return "lets tokens see what follows the prefix"
        return None

    def _logits(self, model: Any, ids: list[int]) -> torch.Tensor:
        batch = lay_out([[shifted(ids, [1.0] * len(ids), prefix=PREFIX)]], self.pad_token_id, causal=True)
        with asking(model):
            outputs = forward(model, batch.to(next(model.parameters()).device))
        logits: torch.Tensor = getattr(outputs, self._output)
        return logits[0].double()

    def _refusal(self, model: Any, problem: str) -> ValueError:
        return ValueError(f"objective: {self.name} cannot train {type(bare(model)).__name__}: it {problem}")


def prefilled(model: Any, prompt_ids: torch.Tensor) -> dict[str, Any]:
    """Arguments with which `model.generate` completes a prompt (1, P) read in both directions, as it was trained.

    The keys and values of the first P - 1 positions come from a pass in which all P see each other. `generate` adds the
    last position itself, and this one sees the same either way.
    """
    length = prompt_ids.shape[1]
    everything = torch.ones(1, 1, length, length, dtype=torch.bool, device=prompt_ids.device)
    mask = fitted(everything, bare(model))
    cache = model(input_ids=prompt_ids, attention_mask=mask, use_cache=True).past_key_values
    cache.crop(-1)
    return {"input_ids": prompt_ids, "attention_mask": torch.ones_like(prompt_ids), "past_key_values": cache}


def _learned(sample: Sample) -> list[int]:
    return [place for place, weight in enumerate(sample.weights) if weight]
