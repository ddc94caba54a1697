import re

import pytest

from fastft.data import stdlib_docs
from fastft.data.sources import read
from fastft.data.splits import divide

PROSE = "This sentence says something about what the thing does, and how, and to whom it may be of use.\n"
MODULE = f'''"""About the module. {PROSE * 3}"""

class Thing:
    """About the class. {PROSE * 3}"""

    def run(self):
        """About the method. {PROSE * 3}"""

    def again(self):
        """About the method. {PROSE * 3}"""

    def short(self):
        """Too short."""

    def table(self):
        """{"| 1 | 2 | 3 | == " * 40}"""
'''


def test_documents_are_the_prose_of_modules_classes_and_functions(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "a.py").write_text(MODULE)
    (tmp_path / "b.py").write_text("def broken(:\n")
    found = stdlib_docs.documents(tmp_path)
    lines = [MODULE.splitlines().index(line) + 1 for line in ("class Thing:", "    def run(self):")]
    assert [(text.split(".")[0], origin, module) for text, origin, module in found] == [
        ("About the module", "pack/a.py:1", "pack"),
        ("About the class", f"pack/a.py:{lines[0]}", "pack"),
        ("About the method", f"pack/a.py:{lines[1]}", "pack"),
    ]


@pytest.fixture(scope="module")
def documents():
    return list(read("builtin:stdlib-docs"))


def test_there_are_thousands_of_documents_of_topics_and_of_docstrings(documents):
    topics = [record for record in documents if record.origin.startswith("help(")]
    assert len(topics) > 40
    assert len(documents) - len(topics) > 1500
    assert sum(len(record.columns["text"]) for record in documents) > 1_000_000
    assert all(len(record.columns["text"]) >= 150 for record in documents)
    assert len({record.columns["text"] for record in documents}) == len(documents)


def test_little_of_a_held_out_document_is_trained_on(documents):
    def paragraphs(side):
        found = (" ".join(p.split()) for r in side for p in re.split(r"\n\s*\n", r.columns["text"]))
        return {paragraph for paragraph in found if len(paragraph) >= stdlib_docs.PARAGRAPH_CHARS}

    train, held_out = (list(divide(documents, split, 0.1)) for split in ("train", "eval"))
    assert not {record.group for record in train} & {record.group for record in held_out}
    assert len(paragraphs(train) & paragraphs(held_out)) < 0.02 * len(paragraphs(held_out))
