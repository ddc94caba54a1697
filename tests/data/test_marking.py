import pytest
from jinja2 import Environment
from jinja2.ext import loopcontrols

from fastft.data.marking import instrument, numbered, read

MESSAGES = [{"role": "user", "content": "q"}, {"role": "tool", "content": " r "}, {"role": "assistant", "content": "a"}]


def written(source, messages=MESSAGES):
    """Text by the template as it is, which has to be the one without marks; and the text of each piece."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain = environment.from_string(source).render(messages=messages)
    reading = read(environment.from_string(instrument(source)).render(messages=numbered(messages)))
    assert reading.text == plain
    return [(message, plain[start:end]) for message, start, end in reading.pieces]


@pytest.mark.parametrize("left", ["", "-", "+"])
@pytest.mark.parametrize("right", ["", "-", "+"])
def test_whitespace_control_stays(left, right):
    source = f"<\n  {{%{left} for m in messages {right}%}}\n  {{{{ m.content }}}}\n  {{%{left} endfor {right}%}}\n >"
    assert [(message, text.strip()) for message, text in written(source)] == [(0, "q"), (1, "r"), (2, "a")]


def test_what_only_looks_like_a_tag_is_passed_over():
    source = (
        "{# {% for m in messages %} #}{% raw %}{% for m in messages %}{% endraw %}{{ '{% for m in messages %}' }}"
        '{{ "{% endfor %}" ~ {"a": {"b": 1}}["a"]["b"] }}'
        '{% for m in messages if "%}" != m.role %}{{ m.content }}{% endfor %}'
    )
    assert written(source) == [(0, "q"), (1, " r "), (2, "a")]


def test_other_loops_leave_no_mark():
    source = (
        "{% for m in messages %}{% for k, v in m.items() if k == 'role' %}{{ v }}{% endfor %}"
        "{% for x in 'ab' %}{{ x }}{% else %}-{% endfor %}{% endfor %}{% for x in [] %}{% else %}none{% endfor %}"
    )
    assert written(source) == [(0, "userab"), (1, "toolab"), (2, "assistantab")]


def test_loops_that_are_left_early():
    leaving = "{% if m.role == 'tool' %}{% continue %}{% endif %}"
    source = "{% for m in messages %}{{ m.role }}" + leaving + "{{ m.content }}{% endfor %}!"
    assert written(source) == [(0, "userq"), (1, "tool"), (2, "assistanta")]
    assert written(source.replace("continue", "break")) == [(0, "userq"), (1, "tool")]


def test_messages_within_messages():
    inner = "{% for n in messages[loop.index :] %}[{{ n.content }}]{% endfor %}"
    source = "{% for m in messages %}{{ m.role }}" + inner + ";{% endfor %}"
    pieces = written(source, MESSAGES[::2])
    assert sorted(pieces) == [(0, "user[a];"), (1, "[a]"), (1, "assistant;")]


def test_a_variable_that_is_written_over_is_left_out():
    source = "{% for m in messages %}{{ m.content }}{% set m = 3 %}{% endfor %}"
    assert written(source) == []


def test_a_mark_that_was_cut_in_two_makes_another_text():
    environment = Environment()
    source = "{% set t %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ t[:2] }}"
    output = environment.from_string(instrument(source)).render(messages=numbered(MESSAGES))
    assert read(output).text != environment.from_string(source).render(messages=MESSAGES)
