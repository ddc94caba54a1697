import pytest

from fastft.data.formats import Conversation, Instruction, PromptCompletion, Text, Tokenised, normalise, pick
from fastft.data.sources import RawRecord

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
RECORDS = {
    "text": ({"text": "t"}, Text("t")),
    "prompt_completion": ({"prompt": "p", "completion": "c"}, PromptCompletion("p", "c")),
    "instruction": ({"instruction": "i", "input": None, "output": "o"}, Instruction("i", "", "o")),
    "messages": ({"messages": TURNS}, Conversation(TURNS)),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        Conversation(TURNS),
    ),
    "source_target": ({"source": "s", "target": "t"}, PromptCompletion("s", "t")),
    "tokens": ({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, Tokenised([5, 6, 7], [0.0, 1.0, 1.0])),
}


@pytest.mark.parametrize("name", RECORDS)
def test_each_format_is_told_from_its_columns_and_taken_by_name(name):
    columns, record = RECORDS[name]
    raw = RawRecord({**columns, "id": 7}, "f:1")
    assert pick("auto", raw) is pick(name, raw)
    assert list(normalise([raw], pick(name, raw))) == [record]


def test_alpaca_is_another_name_of_instruction():
    raw = RawRecord({"instruction": "i", "output": "o"}, "f:1")
    assert pick("alpaca", raw) is pick("instruction", raw)


def made(columns):
    raw = RawRecord(columns, "f:3")
    (record,) = normalise([raw], pick("auto", raw))
    return record


def test_messages_keep_what_else_they_say():
    turns = [{"role": "user", "content": "q", "train": True}, {"role": "assistant", "content": "a", "weight": 0.5}]
    assert made({"messages": turns}) == Conversation(turns)
    turns = [{"from": "system", "value": "s", "name": "x"}, {"from": "tool", "value": "4", "train": False}]
    assert made({"conversations": turns, "system": "be brief"}) == Conversation(
        [
            {"role": "system", "content": "be brief"},
            {"role": "system", "content": "s", "name": "x"},
            {"role": "tool", "content": "4", "train": False},
        ]
    )


def test_a_prompt_and_completion_of_messages_learns_what_is_said_in_the_completion():
    asked = [*TURNS, {"role": "user", "content": "why?"}]
    answer = [{"role": "assistant", "content": "so"}]
    found = made({"prompt": asked, "completion": answer})
    said = [{"train": False, **turn} if turn["role"] == "assistant" else turn for turn in asked]
    assert said != asked
    assert found == Conversation([*said, *answer])


def test_tokens_come_with_weights_with_labels_or_with_nothing():
    assert made({"input_ids": [5, 6], "weights": [0, 2.5], "labels": None}) == Tokenised([5, 6], [0.0, 2.5])
    assert made({"input_ids": [5, 6]}) == Tokenised([5, 6], [1.0, 1.0])


def test_an_input_is_optional():
    with_input = RawRecord({"instruction": "i", "input": "x", "output": "o"}, "f:1")
    without = RawRecord({"instruction": "i", "output": "o"}, "f:2")
    records = list(normalise([with_input, without], pick("auto", without)))
    assert records == [Instruction("i", "x", "o"), Instruction("i", "", "o")]


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
        ({"text": None}, "f:3: 'text': a string is wanted, got null$"),
        ({"text": "a\ud800b"}, r"f:3: 'text': half of a surrogate pair \(U\+D800\) at character 1"),
        ({"prompt": ["p"], "completion": "c"}, r"f:3: 'prompt': a string is wanted, got list \['p'\]"),
        ({"instruction": "i", "output": 3}, "f:3: 'output': a string is wanted, got int 3"),
        ({"messages": []}, "f:3: column 'messages': a list of messages is wanted"),
        ({"messages": "hi"}, "f:3: column 'messages': a list of messages is wanted, got str"),
        ({"messages": ["hi"]}, "f:3: message 0: an object with 'role' and 'content' is wanted"),
        ({"messages": [{"from": "human", "value": "x"}]}, "f:3: message 0: 'role' and 'content' .* found from, value"),
        ({"messages": [{**TURNS[0], "train": 1}]}, "f:3: message 0: 'train': true or false is wanted, got int 1"),
        ({"messages": [{**TURNS[0], "weight": -1}]}, "f:3: message 0: 'weight': a number of at least 0 .* int -1"),
        ({"messages": [{**TURNS[0], "weight": float("nan")}]}, "f:3: message 0: 'weight': .* float nan"),
        ({"messages": [{**TURNS[0], "weight": True}]}, "f:3: message 0: 'weight': .* got bool True"),
        (
            {"conversations": [{"from": "bard", "value": "x"}]},
            "f:3: message 0: 'from' is 'bard'; known are human",
        ),
        ({"conversations": [{"role": "user", "content": "x"}]}, "f:3: message 0: 'from' and 'value' are wanted, found"),
        ({"conversations": [{"from": "gpt", "value": None}]}, "f:3: message 0: 'value': a string is wanted, got null$"),
        ({"prompt": TURNS, "completion": "c"}, "f:3: 'prompt': a string is wanted, got list"),
        ({"input_ids": [5, "6"]}, r"f:3: 'input_ids': a list of integers is wanted, got list \[5, '6'\]"),
        ({"input_ids": []}, r"f:3: 'input_ids': a list of integers is wanted, got list \[\]"),
        ({"input_ids": [5, 0.5]}, "f:3: 'input_ids': a list of integers is wanted"),
        ({"input_ids": [[5], [6]]}, "f:3: 'input_ids': a list of integers is wanted"),
        ({"input_ids": [5, -1]}, "f:3: 'input_ids': -1 at 1 is no token id"),
        ({"input_ids": [2**31]}, "f:3: 'input_ids': 2147483648 at 0 is no token id"),
        ({"input_ids": [5, 6], "labels": [5]}, "f:3: 'labels' has 1 values for 2 input_ids"),
        ({"input_ids": [5, 6], "labels": [6, -100]}, "f:3: 'labels': 6 at 0, where input_ids has 5; .* not shifted"),
        ({"input_ids": [5, 6], "weights": [1, -2.0]}, "f:3: 'weights': -2.0 at 1; at least 0 and finite"),
        ({"input_ids": [5, 6], "weights": [float("inf"), 1]}, "f:3: 'weights': inf at 0"),
        ({"input_ids": [5], "weights": [1.0], "labels": [5]}, "f:3: 'weights' and 'labels' both say what is learned"),
        ({"messages": [*TURNS, {"role": "user", "content": [1]}]}, "f:3: message 2: 'content': a string is wanted"),
    ],
)
def test_a_column_of_the_wrong_type_is_named(columns, message):
    raw = RawRecord(columns, "f:3")
    with pytest.raises(ValueError, match=message):
        list(normalise([raw], pick("auto", raw)))
