import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastft.data import batches
from fastft.data.order import order

LENGTHS = st.lists(st.integers(1, 500), max_size=700)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 50), st.booleans())
def test_an_epoch_holds_every_sample_once_and_depends_on_its_arguments_alone(lengths, size, seed, epoch, grouped):
    made = batches(lengths, size, seed, epoch, group_by_length=grouped)
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in made[:-1])
    assert made == batches(lengths, size, seed, epoch, group_by_length=grouped)


@pytest.mark.parametrize("grouped", [False, True])
def test_epochs_and_seeds_differ(grouped):
    lengths = [index % 37 + 1 for index in range(1000)]
    drawn = [batches(lengths, 4, seed, epoch, group_by_length=grouped) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for place, a in enumerate(drawn) for b in drawn[:place])


def test_the_order_is_the_same_in_every_version_and_on_every_machine():
    assert order(10, seed=0, epoch=0) == [7, 9, 1, 6, 4, 0, 3, 8, 2, 5]


def test_grouping_saves_padding_and_puts_the_longest_sample_first():
    lengths = [(index * 7919) % 997 + 1 for index in range(3001)]

    def padded(made):
        return sum(max(lengths[index] for index in batch) * len(batch) for batch in made)

    grouped = batches(lengths, 8, 0, 0, group_by_length=True)
    assert padded(grouped) < 1.1 * sum(lengths) < 1.5 * sum(lengths) < padded(batches(lengths, 8, 0, 0))
    assert max(lengths) in [lengths[index] for index in grouped[0]]


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size: got 0"):
        batches([1, 2], 0, 0, 0)
