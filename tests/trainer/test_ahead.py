import threading
import time

import pytest

from fastft.trainer.ahead import Ahead


def test_the_next_is_made_while_this_one_is_used():
    made = []

    def make(step):
        made.append((step, threading.current_thread().name))
        return step * step

    ahead = Ahead(make, 3)
    assert ahead[0] == 0
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made[1][0] == 1
    assert made[1][1].startswith("fastft-data")
    assert [ahead[1], ahead[2]] == [1, 4]
    assert [step for step, _ in made] == [0, 1, 2]  # each once, and none beyond the end
    ahead.close()


def test_any_step_can_be_asked_for():
    ahead = Ahead(lambda step: -step, 10)
    assert [ahead[step] for step in (4, 2, 3, 9, 0)] == [-4, -2, -3, -9, 0]
    ahead.close()


def test_what_making_raises_is_raised_where_it_is_wanted():
    def make(step):
        if step == 1:
            raise OSError("the file is gone")
        return step

    ahead = Ahead(make, 3)
    assert ahead[0] == 0
    with pytest.raises(OSError, match="the file is gone"):
        ahead[1]
    ahead.close()
