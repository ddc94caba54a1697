"""Which characters of a rendered record are learned, and which tokens those are.

A `Mask` maps a rendering to weighted character spans; `token_weights` maps those to tokens. Boundaries are characters
of the whole rendered text, never the length of a prefix tokenised on its own: a tokenizer may merge across the seam.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

MASKS = ("prompt", "none", "completion")
TRAIN_TURNS = ("all", "last")


class Span(NamedTuple):
    """Characters [start, end) of a rendered text that a model has to produce, its end token included."""

    start: int
    end: int


class WeightedSpan(NamedTuple):
    """Characters [start, end) and the weight of the tokens on them."""

    start: int
    end: int
    weight: float


class Turn(NamedTuple):
    """Whose a target is.

    Attributes:
        role: of the message; a completion's is `assistant`, and a document, which has none, is always learned.
        closing: character at which its end-of-turn token begins, which reaches to the target's end; None without one.
        weight: above 0, if the data give this message one, otherwise None.
        message: its number in the conversation. Targets of one message are one turn.
    """

    role: str = ""
    closing: int | None = None
    weight: float | None = None
    message: int = 0


@dataclass(frozen=True, slots=True)
class Rendered:
    """A record as the text that is tokenised.

    Attributes:
        text: n characters.
        targets: the spans the model is to produce, in order: completions, turns, or a whole document.
        closed: an end-of-sequence token follows the text. It counts as character n: a span reaching n + 1 holds it.
        add_special_tokens: the tokenizer adds its own control tokens; False where a chat template wrote them.
        opening: the first words of the record as its author wrote it, by which errors name it.
        divisible: what is longer than `max_length` is cut into blocks; otherwise it is cut off.
        learned: what a policy made of it: the spans that are learned, and how much.
        turns: whose each target is; empty, or one for each of them.
        barred: spans that the data themselves say are not to be learned (`train: false`, `weight: 0`); no targets.
        kept: strings that are learned even where the text is masked.
        tokens: input_ids and weights as the data gave them. They are taken as they are: the text is empty, and no
            policy applies.
    """

    text: str
    targets: tuple[Span, ...]
    closed: bool
    add_special_tokens: bool
    opening: str
    divisible: bool = False
    learned: tuple[WeightedSpan, ...] = ()
    turns: tuple[Turn, ...] = ()
    barred: tuple[Span, ...] = ()
    kept: tuple[str, ...] = ()
    tokens: tuple[list[int], list[float]] | None = None

    def spoken(self) -> list[tuple[Span, Turn]]:
        """Each target and whose it is."""
        return list(zip(self.targets, self.turns or (Turn(),) * len(self.targets), strict=True))


Policy = Callable[[Rendered], list[WeightedSpan]]


@dataclass(frozen=True)
class Mask:
    """A mask policy: what of a record is learned, and how much. Fields are keys of the configuration.

    A character's weight is found in this order:

    1. `mask`: 1 in a learned turn, else 0; `none`: 1; `completion`: the inverse of `prompt`.
    2. `train` and `weight` of a message in the data count for its whole turn, whatever its role and `mask`.
    3. Where the weight is 0, `keep_spans` and the strings of `keep_field` make it 1.
    4. `span_weights` multiply it; where several patterns match, the last in the mapping counts.
    5. The end-of-turn token of a target weighs 0 unless `train_on_eot`.

    A token weighs as much as the heaviest of its characters (`token_weights`). Masks touch the loss only: what a model
    computes of the tokens is the same under all of them.

    Attributes:
        mask: `prompt`: prompts are masked, targets learned; `none`: every token is learned; `completion`: targets are
            masked, the rest is learned.
        train_roles: of the turns that are targets. A completion's is `assistant`.
        train_turns: `all`, or `last`: of the learned turns only the last, its end token included, and nothing of those
            before it (LLaMA-Factory's `mask_history`).
        keep_spans: a regular expression.
        keep_field: name of a column with a string or a list of strings, each to be learned wherever it occurs.
        span_weights: weights of at least 0 by regular expression.
        train_on_eot: the token that ends a turn or a completion is learned.

    Raises:
        ValueError: a value that is none of these; names the key.
    """

    mask: str = "prompt"
    train_roles: tuple[str, ...] = ("assistant",)
    train_turns: str = "all"
    keep_spans: str | None = None
    keep_field: str | None = None
    span_weights: Mapping[str, float] = field(default_factory=dict)
    train_on_eot: bool = True

    def __post_init__(self) -> None:
        _one_of("mask", self.mask, MASKS)
        _one_of("train_turns", self.train_turns, TRAIN_TURNS)
        if self.mask == "none" and self.train_turns == "last":
            raise ValueError("train_turns: 'last' masks the turns before it, and mask='none' masks nothing; drop one")
        roles = self.train_roles
        if isinstance(roles, str) or not roles or not all(isinstance(role, str) and role for role in roles):
            raise ValueError(f"train_roles: a list of roles is wanted, such as ['assistant'], got {roles!r}")
        object.__setattr__(self, "train_roles", tuple(roles))
        if self.keep_spans is not None:
            _compiled("keep_spans", self.keep_spans)
        if self.keep_field is not None and not (isinstance(self.keep_field, str) and self.keep_field):
            raise ValueError(f"keep_field: the name of a column is wanted, got {self.keep_field!r}")
        if not isinstance(self.span_weights, Mapping):
            raise ValueError(f"span_weights: a weight by regular expression is wanted, got {self.span_weights!r}")
        for pattern, weight in self.span_weights.items():
            _compiled("span_weights", pattern)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"span_weights: {pattern!r}: a number of at least 0 is wanted, got {weight!r}")
        if not isinstance(self.train_on_eot, bool):
            raise ValueError(f"train_on_eot: true or false is wanted, got {self.train_on_eot!r}")

    def __call__(self, rendered: Rendered) -> list[WeightedSpan]:
        """Spans of one weight each, in order and apart; what is in none of them is masked."""
        weights = np.full(len(rendered.text) + 1, 0.0 if self.mask == "prompt" else 1.0)
        spoken = rendered.spoken()
        for (span, turn), weight in zip(spoken, self._targets(spoken), strict=True):
            if self.mask == "prompt":
                weights[slice(*span)] = weight
            elif turn.weight is not None:
                weights[slice(*span)] = turn.weight
            elif self.mask == "completion" and weight:
                weights[slice(*span)] = 0.0
        for span in rendered.barred:
            weights[slice(*span)] = 0.0
        for span in self._kept(rendered):
            masked = weights[slice(*span)]
            masked[masked == 0] = 1.0
        if self.span_weights:
            tiers = np.ones_like(weights)
            for pattern, weight in self.span_weights.items():
                for match in re.finditer(pattern, rendered.text):
                    tiers[slice(*match.span())] = weight
            weights *= tiers
        if not self.train_on_eot:
            for span, turn in spoken:
                if turn.closing is not None:
                    weights[turn.closing : span.end] = 0.0
        return _runs(weights)

    def patterns_in(self, text: str) -> Iterator[str]:
        """Those of its regular expressions that match somewhere in a text."""
        patterns = [*self.span_weights] if self.keep_spans is None else [self.keep_spans, *self.span_weights]
        yield from (pattern for pattern in dict.fromkeys(patterns) if re.search(pattern, text))

    def _targets(self, spoken: Sequence[tuple[Span, Turn]]) -> list[float]:
        """Weight of each target where prompts are masked."""
        weights = []
        for _, turn in spoken:
            by_role = float(not turn.role or turn.role in self.train_roles)
            weights.append(by_role if turn.weight is None else turn.weight)
        if self.train_turns == "last":
            last = max((turn.message for (_, turn), w in zip(spoken, weights, strict=True) if w), default=None)
            weights = [w if turn.message == last else 0.0 for (_, turn), w in zip(spoken, weights, strict=True)]
        return weights

    def _kept(self, rendered: Rendered) -> Iterator[Span]:
        patterns = [re.escape(string) for string in rendered.kept]
        if self.keep_spans is not None:
            patterns.append(self.keep_spans)
        for pattern in patterns:
            for match in re.finditer(pattern, rendered.text):
                yield Span(*match.span())


def policy(name: str) -> Policy:
    """The policy called `name`, with no other option set. Raises ValueError for an unknown one."""
    return Mask(mask=name)


def kept_strings(columns: Mapping[str, Any], column: str, text: str, origin: str) -> tuple[str, ...]:
    """The strings of this column, which all occur in the text. A record without the column, or null in it, has none.

    Raises:
        ValueError: anything but strings, or one that is empty or not in the text; names `origin`.
    """
    value = columns.get(column)
    strings = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"{origin}: {column!r} (keep_field): a string or a list of strings is wanted, got {value!r}")
    for string in strings:
        if string not in text:
            raise ValueError(
                f"{origin}: {column!r} (keep_field): {string!r} is not in the text; it has to be written as there, "
                f"capitals and spaces too: {text[:200]!r}"
            )
    return tuple(strings)


def token_weights(offsets: Sequence[tuple[int, int]], spans: Sequence[WeightedSpan]) -> list[float]:
    """Weight of each of T tokens, given its character offsets [s, e) in the same text as the spans.

    A token is on a span if it holds at least one of its characters: `max(s, start) < min(e, end)`. One that straddles
    a boundary is learned: the first characters of a completion cannot be produced without it. A token without
    characters (`s == e`: byte-level tokenizers may report whitespace so, at its end) stands for the character before
    it: `start < s <= end`. On several spans, the largest weight counts; on none, the weight is 0.
    """
    if not offsets:
        return []
    begin, end = _columns(offsets)
    characters = np.zeros(max(int(end.max()), *(span.end for span in spans), 0) + 2)  # one more on either side
    for span in spans:
        place = slice(span.start + 1, span.end + 1)
        np.maximum(characters[place], span.weight, out=characters[place])
    begin = np.where(begin == end, begin, begin + 1)
    heaviest = np.maximum.reduceat(characters, np.stack((begin, end + 1), axis=1).ravel())[::2]
    weights: list[float] = heaviest.tolist()
    return weights


def _columns(offsets: Sequence[tuple[int, int]]) -> Any:
    """Starts and ends, (2, T) int64; twice as fast as np.asarray."""
    return np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2).T


def _runs(weights: Any) -> list[WeightedSpan]:
    """Stretches of characters with the same weight, those of 0 left out."""
    seams = np.flatnonzero(np.diff(weights)) + 1
    starts, ends = [0, *seams.tolist()], [*seams.tolist(), len(weights)]
    return [
        WeightedSpan(start, end, float(weights[start]))
        for start, end in zip(starts, ends, strict=True)
        if weights[start]
    ]


def _one_of(key: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{key}: got {value!r}; one of {', '.join(known)} is wanted")


def _compiled(key: str, pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise ValueError(f"{key}: a regular expression is wanted, got {pattern!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}: {pattern!r} is no regular expression: {error}") from None
