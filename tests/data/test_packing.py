import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastft.data.packing import pack


def slow(lengths, capacity):
    """Best-fit decreasing as it is told: look at every row."""
    rows, room = [], []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [r for r in range(len(rows)) if lengths[index] <= room[r]]
        if fitting:
            row = min(fitting, key=lambda r: room[r])
            rows[row].append(index)
            room[row] -= lengths[index]
        else:
            rows.append([index])
            room.append(capacity - lengths[index])
    return rows


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 100))
def test_each_sample_is_in_one_row_and_no_row_is_overfull(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    assert len(rows) == len(slow(lengths, capacity))


def test_rows_are_nearly_full():
    lengths = [1 + (i * 7919) % 300 for i in range(5000)]
    rows = pack(lengths, 1024)
    assert sum(lengths) / (len(rows) * 1024) > 0.99


def test_a_sample_longer_than_a_row():
    with pytest.raises(ValueError, match="sample 1 has 9 tokens, a row 8"):
        pack([3, 9], 8)
