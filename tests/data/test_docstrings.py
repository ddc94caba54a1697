import ast
import textwrap

import pytest

from fastft.data import docstrings
from fastft.data.sources import read
from fastft.data.splits import divide

MODULE = '''
import functools

class Stack:
    """Not a function."""

    @functools.wraps(len)
    def push(self, item,
             times=1):
        """Put an item on top of the stack.

        Some more.

            Indented more.
        """

        # as often as asked for
        for _ in range(times):
            self.items.append(item)

    async def later(self):
        \'\'\'Wait for an item and give it back.\'\'\'
        def inner(value):
            """Tell whether the value is there."""
            return value is not None
        return await self.queue.get(inner)

    def undocumented(self):
        return self.items

    def abstract(self):
        """Give back the top of the stack, or nothing."""
        raise NotImplementedError("abstract")

    def empty(self):
        """Do nothing, and be documented for it."""
        pass

    def one_line(self): """Give back the size of it all."""; return len(self.items)

    def foreign(self):
        """Zurück zum Anfang: größtmöglich übertrieben für Prüfungen."""
        return self.items[0]

    def short(self):
        """Size."""
        return len(self.items)

    def long(self):
        """Return it."""
        return [
ITEMS
        ]

def push_again(stack, item):
    """Put an item on top of the stack.

    Some more.

        Indented more.
    """
    return stack.push(item, times=2)
'''.replace("ITEMS", "            'a line of many items',\n" * 100)


def write(folder, **modules):
    for name, text in modules.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_pairs_are_functions_without_their_docstring(tmp_path):
    made = docstrings.pairs(write(tmp_path, stack=MODULE))
    assert [pair.origin.split()[1] for pair in made] == ["Stack.push", "Stack.later", "Stack.later.inner"]
    push, later, inner = made
    source = textwrap.dedent(
        """\
        @functools.wraps(len)
        def push(self, item,
                 times=1):
            # as often as asked for
            for _ in range(times):
                self.items.append(item)"""
    )
    assert push.prompt == f"Write the docstring of this Python function.\n\n```python\n{source}\n```"
    assert push.completion == "Put an item on top of the stack.\n\nSome more.\n\n    Indented more."
    assert push.origin == f"stack.py:{MODULE.splitlines().index('    def push(self, item,') + 1} Stack.push"
    assert "async def later(self):\n    def inner" in later.prompt
    assert inner.completion == "Tell whether the value is there."


def test_repeated_and_broken_and_foreign_files_are_left_out(tmp_path):
    function = 'def {0}(value):\n    """Give back twice the {1} value."""\n    return value + value  # {2}\n'
    folder = write(
        tmp_path,
        a=function.format("f", "whole", 1),
        b=function.format("f", "whole", 2) + function.format("f", "other", 1),
        pack__inner__c=function.format("h", "last", 3),
        test__d=function.format("k", "tested", 4),
        e="def broken(:\n",
    )
    (folder / "latin.py").write_bytes(b'def f():\n    """\xe9"""\n')
    found = [(pair.module, pair.origin) for pair in docstrings.pairs(folder)]
    assert found == [("a", "a.py:1 f"), ("pack", "pack/inner/c.py:1 h")]


def test_a_python_without_sources_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="came without the source of its standard library"):
        docstrings.pairs(tmp_path)


@pytest.fixture(scope="module")
def stdlib():
    return list(read("builtin:stdlib-docstrings"))


def test_the_standard_library_has_thousands_of_clean_pairs(stdlib):
    assert len(stdlib) > 4000
    for record in stdlib:
        prompt, docstring = record.columns["prompt"], record.columns["completion"]
        source = prompt.removeprefix(f"{docstrings.INSTRUCTION}\n\n```python\n").removesuffix("\n```")
        (function,) = ast.parse(source).body
        assert ast.get_docstring(function) != docstring
        assert docstring == docstring.strip()
    assert len({record.columns["completion"] for record in stdlib}) == len(stdlib)


def test_modules_are_not_divided(stdlib):
    train, held_out = (divide(stdlib, split, 0.05) for split in ("train", "eval"))
    assert len(train) + len(held_out) == len(stdlib)
    assert abs(len(held_out) / len(stdlib) - 0.05) < 0.002
    assert not {record.group for record in train} & {record.group for record in held_out}
    assert len({record.group for record in held_out}) > 5
