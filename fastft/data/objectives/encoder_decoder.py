"""What objectives of encoder-decoder models share: pairs of sequences, and what the decoder is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from fastft.data.attention import bare
from fastft.data.batch import IGNORE_INDEX, Batch, Target
from fastft.data.objectives.objective import Objective
from fastft.data.sample import Samples

LAST = -1  # in place of a token: the target's own last one


class Pair(NamedTuple):
    """S tokens for the encoder, and T that the decoder is to produce, each with its weight."""

    source: Sequence[int]
    target: Sequence[int]
    weights: Sequence[float]


@dataclass
class EncoderDecoder(Objective):
    """Objectives whose samples become pairs: the decoder is given target t - 1 and learns target t, t = 0 .. T - 1.

    Decoder inputs are those of the model itself, made of the whole target: also of tokens that are not learned.
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._start: int | None = None

    def longest(self, samples: Samples) -> int:
        """Of either side."""
        seams = np.asarray(samples.arrays["boundaries"], np.int64)
        return int(np.maximum(samples.lengths - seams, seams).max())

    def outline(self, model: Any) -> None:
        """Learn from the model what its decoder begins with.

        Raises:
            ValueError: it is no encoder-decoder, its configuration lacks a start or padding token, or it makes decoder
                inputs otherwise than by moving the target on by one.
        """
        super().outline(model)
        self._start = decoder_start(bare(model))

    def pairs_batch(self, pairs: Sequence[Pair], multiple: int = 1) -> Batch:
        """B pairs, padded on the right to S and T rounded up to a multiple; labels are aligned with the decoder.

        Raises:
            ValueError: there are no pairs, or `prepare` has not been called.
        """
        if self._start is None:
            raise ValueError(f"objective: {self.name} has to be prepared for its model first: call prepare(model)")
        if not pairs:
            raise ValueError("samples: got none; a batch needs at least one")
        shapes = [
            (len(pairs), -(-max(map(len, side)) // multiple) * multiple)
            for side in ([pair.source for pair in pairs], [pair.target for pair in pairs])
        ]
        inputs = {
            name: np.full(shape, fill, np.int64)
            for stem, shape in zip(("", "decoder_"), shapes, strict=True)
            for name, fill in ((f"{stem}input_ids", self.pad_token_id), (f"{stem}attention_mask", 0))
        }
        labels, weights = np.full(shapes[1], IGNORE_INDEX, np.int64), np.zeros(shapes[1], np.float32)
        for b, (source, target, weight) in enumerate(pairs):
            start = target[LAST] if self._start == LAST else self._start
            for stem, ids in (("", source), ("decoder_", [start, *target[:-1]])):
                inputs[f"{stem}input_ids"][b, : len(ids)] = ids
                inputs[f"{stem}attention_mask"][b, : len(ids)] = 1
            weights[b, : len(target)] = weight
            labels[b, : len(target)] = target
        labels[weights == 0] = IGNORE_INDEX
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        tokens = sum(len(pair.source) + len(pair.target) for pair in pairs)
        return Batch(tensors, (Target("logits", torch.from_numpy(labels), torch.from_numpy(weights)),), tokens)


def decoder_start(model: Any) -> int:
    """What a model puts before a target for its decoder: a token, or LAST: the target's last one (mBART's language).

    Found by asking its `prepare_decoder_input_ids_from_labels`; without one, `decoder_start_token_id` is it.

    Raises:
        ValueError: as `EncoderDecoder.prepare`.
    """
    config, name = model.config, type(model).__name__
    if not getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"objective: {name} is no encoder-decoder model, which this objective needs")
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if make is None:
        owners = (getattr(model, "generation_config", None), config)
        found = (getattr(owner, "decoder_start_token_id", None) for owner in owners)
        starts = [start for start in found if start is not None]
        if not starts:
            raise ValueError(f"objective: {name} has no decoder_start_token_id; set it in its configuration")
        return int(starts[0])
    a, b, c = [token for token in range(4) if token != getattr(config, "pad_token_id", None)][:3]
    targets = [[a, b, c], [b, c, a]]
    try:
        made = [make(labels=torch.tensor([target]))[0].tolist() for target in targets]
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"objective: {name} makes no decoder inputs ({' '.join(str(error).split())[:200]}); set "
            "decoder_start_token_id and pad_token_id in its configuration"
        ) from None
    first, second = (inputs[0] for inputs in made)
    if [inputs[1:] for inputs in made] == [target[:-1] for target in targets]:
        if first == second:
            return int(first)
        if (first, second) == (c, a):
            return LAST
    raise ValueError(
        f"objective: {name} makes of the target {targets[0]} the decoder inputs {made[0]}; one step on is wanted"
    )
