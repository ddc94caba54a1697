import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastft.data.sources import RawRecord
from fastft.data.splits import divide as divided
from fastft.data.splits import draw as drawn_from


def divide(*arguments):
    return list(divided(*arguments))


def draw(*arguments, **options):
    return list(drawn_from(*arguments, **options))


GROUPS = st.lists(st.integers(0, 40).map(str), min_size=2, max_size=200).filter(lambda groups: len(set(groups)) > 1)


@given(GROUPS, st.floats(0.01, 0.9))
def test_the_sides_are_the_whole_in_order_and_share_no_group(groups, fraction):
    records = [RawRecord({"text": "x"}, f"{index}", group) for index, group in enumerate(groups)]
    train, held_out = divide(records, "train", fraction), divide(records, "eval", fraction)
    assert train
    assert held_out
    assert sorted(train + held_out, key=lambda record: int(record.origin)) == records
    assert not {record.group for record in train} & {record.group for record in held_out}
    smallest = min(map(groups.count, groups))
    assert len(held_out) <= max(smallest, 1, round(fraction * len(records)))


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_the_share_is_met_and_reading_order_does_not_matter(fraction):
    records = [RawRecord({"prompt": f"{index}", "completion": ""}, "") for index in range(1000)]
    held_out = divide(records, "eval", fraction)
    assert len(held_out) == 1000 * fraction
    assert divide(records[::-1], "eval", fraction) == held_out[::-1]


def test_equal_records_stay_together():
    records = [RawRecord({"text": f"{index % 10}"}, f"{index}") for index in range(100)]
    assert {record.columns["text"] for record in divide(records, "eval", 0.2)}.isdisjoint(
        record.columns["text"] for record in divide(records, "train", 0.2)
    )


def test_a_lone_text_is_cut_at_a_line():
    text = "".join(f"line {index}\n" for index in range(100))
    record = RawRecord({"text": text}, "a.txt")
    (train,), (held_out,) = (divide([record], split, 0.1) for split in ("train", "eval"))
    assert train.columns["text"] + held_out.columns["text"] == text
    assert held_out.columns["text"].startswith("line ")
    assert 0.07 < len(held_out.columns["text"]) / len(text) < 0.1


@pytest.mark.parametrize(
    ("records", "split", "fraction", "message"),
    [
        ([RawRecord({"text": "x"}, "")], "test", 0.1, "split: got 'test'; one of train, eval"),
        ([RawRecord({"text": "x"}, "")], "train", 1.0, "eval_fraction: got 1.0"),
        ([RawRecord({"text": "x"}, "")], "train", -0.1, "eval_fraction: got -0.1"),
        ([RawRecord({"text": "x"}, "")], "eval", 0.0, "nothing is held out"),
        ([RawRecord({"text": "one line"}, "a.txt")], "eval", 0.1, r"a\.txt: .*cannot cut this text"),
        ([RawRecord({"text": " \n"}, "a.txt")], "eval", 0.1, r"a\.txt: the text is empty"),
        ([RawRecord({"prompt": "p", "completion": "c"}, "")] * 3, "train", 0.1, r"none of 3 record\(s\)"),
    ],
)
def test_what_cannot_be_divided_is_refused(records, split, fraction, message):
    with pytest.raises(ValueError, match=message):
        divide(records, split, fraction)


def test_without_a_fraction_all_of_it_trains():
    records = [RawRecord({"text": "x"}, "")]
    assert divide(records, "train", 0.0) == records


def test_a_source_is_read_twice_and_never_held():
    class Records:
        readings = 0

        def __iter__(self):
            self.readings += 1
            return (RawRecord({"text": f"{index}"}, f"{index}") for index in range(1000))

    records = Records()
    side = divided(records, "train", 0.1)
    assert (len(side), records.readings) == (900, 1)
    some = drawn_from(side, 30, seed=0)
    assert (len(some), records.readings) == (30, 1)
    assert list(some) == list(some)
    assert records.readings == 3
    assert not {record.origin for record in some} & {record.origin for record in divided(records, "eval", 0.1)}
    assert len(drawn_from(records, 7, seed=0)) == 7


@pytest.mark.parametrize(("change", "message"), [(1, "grew .* had 10 records"), (-1, "shrank .* from 10 records to 9")])
def test_a_source_that_changes_while_it_is_read_is_refused(change, message):
    records = [RawRecord({"text": f"{index}"}, f"{index}") for index in range(10)]
    side = divided(records, "train", 0.3)
    records[:] = records[:change] if change < 0 else [*records, records[0]]
    with pytest.raises(ValueError, match=message):
        list(side)


def test_a_draw_is_spread_in_order_and_a_function_of_the_seed():
    items = list(range(1000))
    drawn = draw(items, 100, seed=1)
    assert drawn == sorted(set(drawn)) == draw(items, 100, seed=1)
    assert len(drawn) == 100
    assert drawn != draw(items, 100, seed=2)
    assert all(any(low <= item < low + 100 for item in drawn) for low in range(0, 1000, 100))
    assert set(drawn) <= set(draw(items, 200, seed=1))
    assert draw(items, None, 0) == draw(items, 5000, 0) == items
    with pytest.raises(ValueError, match="limit: got 0"):
        draw(items, 0, 0)
