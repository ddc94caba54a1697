import pytest

from fastft.data.formats import Conversation, Instruction, PromptCompletion, Text, normalise, pick
from fastft.data.sources import RawRecord

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
RECORDS = {
    "text": ({"text": "t"}, Text("t")),
    "prompt_completion": ({"prompt": "p", "completion": "c"}, PromptCompletion("p", "c")),
    "instruction": ({"instruction": "i", "input": None, "output": "o"}, Instruction("i", "", "o")),
    "messages": ({"messages": TURNS}, Conversation(TURNS)),
}


@pytest.mark.parametrize("name", RECORDS)
def test_each_format_is_told_from_its_columns_and_taken_by_name(name):
    columns, record = RECORDS[name]
    raw = RawRecord({**columns, "id": 7}, "f:1")
    assert pick("auto", raw) is pick(name, raw)
    assert list(normalise([raw], pick(name, raw))) == [record]


def test_an_input_is_optional():
    with_input = RawRecord({"instruction": "i", "input": "x", "output": "o"}, "f:1")
    without = RawRecord({"instruction": "i", "output": "o"}, "f:2")
    made = list(normalise([with_input, without], pick("auto", without)))
    assert made == [Instruction("i", "x", "o"), Instruction("i", "", "o")]


def test_columns_that_fit_nothing_or_several_formats_are_refused():
    with pytest.raises(
        ValueError, match=r"f:1: no format fits the columns question, answer\. Accepted are text: text;"
    ):
        pick("auto", RawRecord({"question": "q", "answer": "a"}, "f:1"))
    with pytest.raises(ValueError, match=r"f:1: the columns fit several formats \(text, instruction\)"):
        pick("auto", RawRecord({"text": "t", "instruction": "i", "output": "o"}, "f:1"))
    with pytest.raises(ValueError, match="format: got 'csv'; one of auto, text, prompt_completion"):
        pick("csv", RawRecord({"text": "t"}, "f:1"))


def test_a_later_record_with_other_columns_is_refused():
    records = [RawRecord({"prompt": "p", "completion": "c"}, "f:1"), RawRecord({"prompt": "p", "answer": "c"}, "f:2")]
    with pytest.raises(ValueError, match="f:2: no column 'completion'; found prompt, answer, and format"):
        list(normalise(records, pick("auto", records[0])))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": None}, "f:3: 'text': a string is wanted, got NoneType None"),
        ({"text": "a\ud800b"}, r"f:3: 'text': half of a surrogate pair \(U\+D800\) at character 1"),
        ({"prompt": ["p"], "completion": "c"}, r"f:3: 'prompt': a string is wanted, got list \['p'\]"),
        ({"instruction": "i", "output": 3}, "f:3: 'output': a string is wanted, got int 3"),
        ({"messages": []}, "f:3: column 'messages': a list of messages is wanted"),
        ({"messages": "hi"}, "f:3: column 'messages': a list of messages is wanted, got str"),
        ({"messages": ["hi"]}, "f:3: message 0: an object with 'role' and 'content' is wanted"),
        ({"messages": [{"from": "human", "value": "x"}]}, "f:3: message 0: 'role' and 'content' .* found from, value"),
        ({"messages": [*TURNS, {"role": "user", "content": [1]}]}, "f:3: message 2: 'content': a string is wanted"),
    ],
)
def test_a_column_of_the_wrong_type_is_named(columns, message):
    raw = RawRecord(columns, "f:3")
    with pytest.raises(ValueError, match=message):
        list(normalise([raw], pick("auto", raw)))
