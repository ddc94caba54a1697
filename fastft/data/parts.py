"""Parts of a record, each tokenised on its own, as an encoder and a decoder take them."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from fastft.data.masking import Rendered, token_weights


class Part(NamedTuple):
    """Characters [start, end) of a record's text; one with n characters and `end` n + 1 holds its end token too."""

    record: Rendered
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.record.text[self.start : self.end]


class PartTokens(NamedTuple):
    """T tokens of a part and their weights; the first `before` and the last `after` are control tokens."""

    ids: list[int]
    weights: list[float]
    before: int = 0
    after: int = 0

    def cut(self, length: int) -> "PartTokens":
        """At most `length` tokens: the text is cut at its end, control tokens stay.

        Those behind a text that was cut are not learned: the text does not end there.
        """
        if len(self.ids) <= length:
            return self
        end, rest = max(self.before, length - self.after), len(self.ids) - self.after
        ids, weights = self.ids[:end] + self.ids[rest:], self.weights[:end] + [0.0] * self.after
        return PartTokens(ids, weights, self.before, self.after)

    @property
    def text_length(self) -> int:
        """Tokens that are not control tokens."""
        return len(self.ids) - self.before - self.after


def encode_parts(
    parts: Iterable[Part], tokenizer: Any, *, control: bool = True, target: bool = False
) -> Iterator[PartTokens]:
    """Tokens of each part, weighted by what its record has to learn of it.

    Control tokens before the text weigh as its first character, those after it as its last, which is the end token
    where the part holds that.

    Args:
        control: with the control tokens that the tokenizer writes, unless the record brings its own.
        target: as the tokenizer writes what a decoder is to produce (another language, perhaps). If the part holds an
            end token and the tokenizer writes none, one is added.

    Raises:
        ValueError: only some characters of a part are learned and the tokenizer gives no offsets, or it has no end
            token.
    """
    for added, group in groupby(parts, key=lambda part: control and part.record.add_special_tokens):
        alike = list(group)
        encoded = tokenizer(
            **{"text_target" if target else "text": [part.text for part in alike]},
            add_special_tokens=added,
            return_special_tokens_mask=True,
            return_offsets_mapping=tokenizer.is_fast,
            return_attention_mask=False,
            verbose=False,
        )
        for index, part in enumerate(alike):
            ids, special = list(encoded["input_ids"][index]), list(encoded["special_tokens_mask"][index])
            before, end = _text_of(special if added else [0] * len(ids))
            if tokenizer.is_fast:
                offsets = [(part.start + a, part.start + b) for a, b in encoded["offset_mapping"][index][before:end]]
                weights = token_weights(offsets, part.record.learned)
            else:
                weights = [_one_weight(part, tokenizer)] * (end - before)
            head, text, tail = ids[:before], ids[before:end], ids[end:]
            if target and part.record.closed and part.end > len(part.record.text):
                text, tail = _closed(text, tail, tokenizer)
            edges = [(part.start, part.start + 1), (part.end - 1, part.end)]
            first, last = token_weights(edges, part.record.learned)
            weights = [first] * before + weights[: len(text)] + [last] * len(tail)
            yield PartTokens(head + text + tail, weights, before, len(tail))


def _text_of(special: list[int]) -> tuple[int, int]:
    """[before, end) of the text between the control tokens at its two ends."""
    before = next((place for place, mark in enumerate(special) if not mark), len(special))
    end = next((place for place in range(len(special), before, -1) if not special[place - 1]), before)
    return before, end


def _closed(text: list[int], tail: list[int], tokenizer: Any) -> tuple[list[int], list[int]]:
    """With one end token, whoever wrote it."""
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    while text and text[-1] in ends:
        text = text[:-1]
    if ends.isdisjoint(tail):
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: it has no end token, so a model could never learn to stop; set eos_token")
        tail = [tokenizer.eos_token_id, *tail]
    return text, tail


def _one_weight(part: Part, tokenizer: Any) -> float:
    """The weight that all characters of a part share, without which nothing can be said of its tokens."""
    weights = set(token_weights([(place, place + 1) for place in range(part.start, part.end)], part.record.learned))
    if len(weights) > 1:
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} gives no character offsets, from which masks within a text are "
            "made; learn all of it, or take a fast tokenizer (one with a tokenizer.json)"
        )
    return weights.pop() if weights else 0.0
