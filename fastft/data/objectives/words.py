"""Where words begin among tokens, told from the tokens alone, so that a sample need not carry it.

The rule is that of the tokenizer:
    ##ing      WordPiece and others with a prefix for continuations: a token without it begins a word
    ing</w>    a suffix at the end of words: the token behind one begins a word
    ▁the       SentencePiece: a token with the mark begins a word
    Ġthe       byte-level: whitespace begins a word, and so does a change between letters, digits and other characters
    the        a vocabulary of whole words: every token is one
"""

import json
from typing import Any

import numpy as np
from tokenizers import decoders

MARK = "▁"
ANY, LETTER, DIGIT, SPACE, OTHER = range(5)


class WordStarts:
    """For each token of a vocabulary of V: does it begin a word, alone or by what stands before it?

    Raises:
        ValueError: the tokenizer marks words in none of the known ways.
    """

    def __init__(self, tokenizer: Any, special: Any) -> None:
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        self._opens = np.zeros(size, bool)  # (V,) it begins a word wherever it stands
        self._first, self._last = np.zeros(
            (2, size), np.int8
        )  # (V,) of a token behind `last`, one with another `first`
        marks = _marks(tokenizer)
        for token, index in vocabulary.items():
            self._opens[index], self._first[index], self._last[index] = marks(token)
        self._special = np.zeros(size, bool)
        self._special[special] = True

    def __call__(self, ids: Any) -> Any:
        """(T,) bool: token t begins a word. A special token is one of its own, and so is what stands behind it."""
        before = ids[:-1]
        changes = (self._last[before] != self._first[ids[1:]]) & (self._last[before] != ANY)
        starts = self._opens[ids] | self._special[ids]
        starts[1:] |= changes | self._special[before]
        starts[:1] = True
        return starts


def _marks(tokenizer: Any) -> Any:
    """token -> (begins a word, class of its beginning, class of its end); words also begin where classes change."""
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, prefix = core["model"]["type"], core["model"].get("continuing_subword_prefix")
    suffix = core["model"].get("end_of_word_suffix")
    around = json.dumps([core["pre_tokenizer"], core["decoder"]], ensure_ascii=False)
    if kind == "WordLevel":
        return lambda token: (True, ANY, ANY)
    if prefix:
        return lambda token: (not token.startswith(prefix), ANY, ANY)
    if suffix:
        return lambda token: (False, LETTER, SPACE if token.endswith(suffix) else LETTER)
    if '"ByteLevel"' in around:
        return _byte_level
    if MARK in around:
        return lambda token: (token.startswith(MARK), ANY, ANY)
    raise ValueError(
        f"mlm_masking='whole_word': the tokenizer ({kind}) does not mark where words begin: no prefix such as '##', "
        f"no '{MARK}', not byte-level; take mlm_masking='token' or 'span'"
    )


_BYTES = decoders.ByteLevel()


def _byte_level(token: str) -> tuple[bool, int, int]:
    text = _BYTES.decode([token])
    if not text:
        return False, ANY, ANY
    if text == " ":  # the pre-tokenizer joins one space to the word behind it
        return True, SPACE, ANY
    return text[0].isspace(), _kind(text.lstrip()[:1] or " "), _kind(text[-1])


def _kind(character: str) -> int:
    """A part of a character (U+FFFD) counts as a letter: most characters of several bytes are."""
    if character.isspace():
        return SPACE
    if character.isalpha() or character == "\ufffd":
        return LETTER
    return DIGIT if character.isnumeric() else OTHER
