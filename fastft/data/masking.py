"""Which characters of a rendered record are learned, and which tokens those are.

A policy maps a rendering to weighted character spans; `token_weights` maps those to tokens. Boundaries are characters
of the whole rendered text, never the length of a prefix tokenised on its own: a tokenizer may merge across the seam.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """Characters [start, end) of a rendered text that a model has to produce, its end token included."""

    start: int
    end: int


class WeightedSpan(NamedTuple):
    """Characters [start, end) and the weight of the tokens on them."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Rendered:
    """A record as the text that is tokenised.

    Attributes:
        text: n characters.
        targets: the spans the model is to produce, in order: completions, assistant turns, or a whole document.
        closed: an end-of-sequence token follows the text. It counts as character n: a span reaching n + 1 holds it.
        add_special_tokens: the tokenizer adds its own control tokens; False where a chat template wrote them.
        opening: the first words of the record as its author wrote it, by which errors name it.
        divisible: what is longer than `max_length` is cut into blocks; otherwise it is cut off.
    """

    text: str
    targets: tuple[Span, ...]
    closed: bool
    add_special_tokens: bool
    opening: str
    divisible: bool = False


Policy = Callable[[Rendered], list[WeightedSpan]]


def _prompt(rendered: Rendered) -> list[WeightedSpan]:
    return [WeightedSpan(start, end, 1.0) for start, end in rendered.targets]


def _none(rendered: Rendered) -> list[WeightedSpan]:
    return [WeightedSpan(0, len(rendered.text) + 1, 1.0)]


POLICIES: dict[str, Policy] = {
    "prompt": _prompt,  # the prompt is masked: targets are learned
    "none": _none,  # nothing is masked: every token is learned
}


def policy(name: str) -> Policy:
    """The policy called `name`. Raises ValueError for an unknown one."""
    if name not in POLICIES:
        raise ValueError(f"mask: got {name!r}; one of {', '.join(POLICIES)} is wanted")
    return POLICIES[name]


def token_weights(offsets: Sequence[tuple[int, int]], spans: Sequence[WeightedSpan]) -> list[float]:
    """Weight of each of T tokens, given its character offsets [s, e) in the same text as the spans.

    A token is on a span if it holds at least one of its characters: `max(s, start) < min(e, end)`. One that straddles
    a boundary is learned: the first characters of a completion cannot be produced without it. A token without
    characters (`s == e`: byte-level tokenizers may report whitespace so, at its end) stands for the character before
    it: `start < s <= end`. On several spans, the largest weight counts; on none, the weight is 0.
    """
    begin, end = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    weights = np.zeros(len(offsets))
    for span in spans:
        holds = np.minimum(end, span.end) > np.maximum(begin, span.start)
        empty = (begin == end) & (span.start < begin) & (begin <= span.end)
        weights = np.maximum(weights, np.where(np.where(begin == end, empty, holds), span.weight, 0.0))
    result: list[float] = weights.tolist()
    return result
