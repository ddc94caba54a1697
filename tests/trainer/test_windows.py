from hypothesis import given
from hypothesis import strategies as st

from fastft.trainer.windows import Windows

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(lengths, st.integers(1, 9), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_an_epoch_has_every_sample_once(
    sizes: list[int], batch: int, accumulation: int, seed: int, group: bool
) -> None:
    windows = Windows(sizes, batch, accumulation, seed, group)
    for epoch in range(2):
        steps = [windows[epoch * windows.steps_per_epoch + step] for step in range(windows.steps_per_epoch)]
        assert sorted(i for window in steps for micro in window for row in micro for i in row) == list(
            range(len(sizes))
        )
        assert all(0 < len(micro) <= batch for window in steps for micro in window)
        assert all(len(window) == accumulation for window in steps[:-1])


def test_a_step_is_a_function_of_seed_and_step_alone() -> None:
    sizes = list(range(1, 30))
    windows = Windows(sizes, 4, 2, seed=5)
    forth = [windows[step] for step in range(12)]
    back = [windows[step] for step in reversed(range(12))]
    assert forth == back[::-1]
    assert forth == [Windows(sizes, 4, 2, seed=5)[step] for step in range(12)]
    assert forth != [Windows(sizes, 4, 2, seed=6)[step] for step in range(12)]
    assert forth[:4] != forth[4:8]  # epochs differ


def test_rows_are_shuffled_whole() -> None:
    sizes = [5, 1, 3, 2, 4, 4]
    rows = [[0, 1], [2, 3], [4], [5]]
    windows = Windows(sizes, 1, 2, seed=1, rows=rows)
    assert windows.steps_per_epoch == 2
    for epoch in range(3):
        seen = [row for step in range(2) for micro in windows[2 * epoch + step] for row in micro]
        assert sorted(seen) == rows


def test_epochs() -> None:
    windows = Windows([1] * 10, 2, 2, seed=0)
    assert windows.steps_per_epoch == 3
    assert windows.epoch_at(0) == 0
    assert windows.epoch_at(6) == 2
    assert [windows.epoch_of(step) for step in (0, 2, 3, 6)] == [0, 0, 1, 2]
