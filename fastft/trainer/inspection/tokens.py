"""Tokens as people can read them: nothing invisible, and nothing that a terminal or a browser would obey."""

from collections.abc import Sequence
from typing import Any

from fastft.data.objectives.special import special_ids

SPACE, BREAK, TAB, REST = "·", "⏎", "⇥", "‥"
OPEN, CLOSE, BORDER, SPECIAL, BECAME, TIMES, PREFIX_END = "⟦", "⟧", "│", "◆", "←", "×", "‖"  # noqa: RUF001
MARKS = SPACE + BREAK + TAB + REST + OPEN + CLOSE + BORDER + SPECIAL + BECAME + TIMES + PREFIX_END
CHARACTER_TOKENS = 8  # that one character, or a few, may be spread over


class TokenTexts:
    """What each token of a sequence stands for.

    A token is decoded behind another one, so that a space before it is seen, whichever way the tokenizer writes it.
    Where a character is spread over several tokens the first of them shows it and the others show `‥`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(special_ids(tokenizer).tolist())
        self._anchor = next((i for i in self._encode("a") if i not in self._special), None)
        self._before = "" if self._anchor is None else self._decode([self._anchor])

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """One text for each token."""
        texts: list[str] = []
        while len(texts) < len(ids):
            start = len(texts)
            if self.is_special(ids[start]):
                texts.append(visible(str(self._tokenizer.convert_ids_to_tokens(ids[start]))))
                continue
            whole = self._whole_characters(ids, start)
            text = visible(self._text(ids[start:whole]))
            texts += [text or REST, *[REST] * (whole - start - 1)]
        return texts

    def is_special(self, token: int) -> bool:
        return token in self._special

    def _whole_characters(self, ids: Sequence[int], start: int) -> int:
        """The end of the fewest tokens from `start` on that are whole characters; just one where none are."""
        for end in range(start + 1, min(start + CHARACTER_TOKENS, len(ids)) + 1):
            if self.is_special(ids[end - 1]):
                break
            if "\ufffd" not in self._text(ids[start:end]):
                return end
        return start + 1

    def _text(self, ids: Sequence[int]) -> str:
        if self._anchor is not None:
            text = self._decode([self._anchor, *ids])
            if text.startswith(self._before):
                return text[len(self._before) :]
        return self._decode(list(ids))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def visible(text: str) -> str:
    """The text with `·` for a space, `⇥` for a tab and `⏎` before a line break; other characters that print nothing, or
    command a terminal, by their number; and a backslash before what looks like one of our marks."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n":
        return BREAK + "\n"
    if character in " \t":
        return SPACE if character == " " else TAB
    if character in MARKS:
        return "\\" + character
    return character if character.isprintable() else f"<U+{ord(character):04X}>"
