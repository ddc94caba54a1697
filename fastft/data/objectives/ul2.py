"""UL2's mixture of denoisers: regular and extreme span corruption, and continuing a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fastft.data.objectives.encoder_decoder import Pair
from fastft.data.objectives.span_corruption import Noise, SpanCorruption
from fastft.data.sample import Sample

R, S, X = range(3)
EXTREME = (Noise(0.15, 32.0), Noise(0.5, 3.0))  # long spans, or half of the text
MODES = (("[R]", "[S]", "[X]"), ("[NLU]", "[S2S]", "[NLG]"))  # the paper's, and those of google/ul2


@dataclass
class UL2(SpanCorruption):
    """One of three denoisers is drawn for each sample, anew each epoch (Tay et al. 2022, arXiv 2205.05131).

    R   span corruption with `noise_density` and `mean_noise_span_length`.
    S   sequential: the encoder reads the beginning of the text, of any length, and the decoder learns the rest.
    X   extreme: spans of 32 tokens on average, or spans of 3 over half of the text, by halves.

    A mode token before the encoder's input says which. The tokenizer's [R], [S], [X] are taken, or else its [NLU],
    [S2S], [NLG]; with neither there are none, and the model has to tell by the sentinels.

    Attributes:
        ul2_weights: how often R, S and X are drawn, in proportion.
        ul2_mode_tokens: the mode tokens of R, S and X by name: any texts, which the tokenizer may also write as several
            tokens.
    """

    ul2_weights: Sequence[float] = (1.0, 1.0, 1.0)
    ul2_mode_tokens: Sequence[str] | None = None

    name: ClassVar[str] = "ul2"

    def __post_init__(self) -> None:
        weights = [float(weight) for weight in self.ul2_weights]
        if len(weights) != 3 or not all(0 <= w < math.inf for w in weights) or not sum(weights):
            raise ValueError(f"ul2_weights: got {self.ul2_weights}; three shares, of R, S and X, are wanted")
        if self.ul2_mode_tokens is not None and len(self.ul2_mode_tokens) != 3:
            raise ValueError(f"ul2_mode_tokens: got {self.ul2_mode_tokens}; three are wanted, for R, S and X")
        self._shares = np.asarray(weights) / sum(weights)
        self._modes = self._mode_ids()
        super().__post_init__()

    def _mode_ids(self) -> list[list[int]]:
        if self.ul2_mode_tokens is not None:
            return [list(self.tokenizer(mode, add_special_tokens=False).input_ids) for mode in self.ul2_mode_tokens]
        known = self.tokenizer.get_vocab()
        for modes in MODES:
            if all(mode in known for mode in modes):
                return [[known[mode]] for mode in modes]
        return [[], [], []]

    @property
    def noises(self) -> Sequence[Noise]:
        return [*super().noises, *(EXTREME if self._shares[X] else ())]

    @property
    def extra(self) -> int:
        return max(map(len, self._modes))

    def _fits(self, length: int, noise: int, spans: int) -> bool:
        return super()._fits(length, noise, spans) and self.extra + length + 1 <= self.max_length  # S: less 1, and 2

    def pair(self, sample: Sample, random: np.random.Generator) -> Pair:
        weights = np.asarray(sample.weights)
        mode = int(random.choice(3, p=self._shares))
        last = int(np.flatnonzero(weights)[-1])
        if mode == S and last:
            mask = np.arange(len(weights)) >= random.integers(1, last + 1)
        elif mode == X:
            mask = EXTREME[random.integers(len(EXTREME))].learned_mask(weights, random)
        else:
            mode, mask = R, self.noises[0].learned_mask(weights, random)
        return self.corrupted(sample, mask, self._modes[mode])
