import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastft.trainer.plan import Plan, Turn

NAMES = ["mlm", "clm", "nsp"]


def plan(schedule="alternate", weights=(1.0, 1.0, 1.0), stages=(), max_steps=12, seed=0):
    return Plan(NAMES, weights, schedule, stages, seed, max_steps)


def test_alternate_takes_turns_and_windows_in_order():
    turns = [plan()[step] for step in range(12)]
    assert turns == [[Turn(step % 3, step // 3, 1.0)] for step in range(12)]


def test_alternate_passes_over_a_weight_of_zero():
    made = plan(weights=(1.0, 0.0, 2.0))
    assert [made[step] for step in range(4)] == [
        [Turn(0, 0, 1.0)], [Turn(2, 0, 2.0)], [Turn(0, 1, 1.0)], [Turn(2, 1, 2.0)],
    ]  # fmt: skip
    assert made.visits_before(12) == [6, 0, 6]
    later = plan(weights=([[0, 1.0], [4, 0.0]], [[2, 0.0], [5, 1.0]], 1.0))
    assert [later[step][0].task for step in range(12)] == [0, 2, 0, 1, 2, 1, 2, 1, 2, 1, 2, 1]
    assert later.visits_before(12) == [2, 5, 5]
    staged = plan(weights=(1.0, 0.0, 1.0), stages=[{"steps": 3, "tasks": ["nsp", "clm", "mlm"]}], max_steps=-1)
    assert [staged[step][0].task for step in range(3)] == [2, 0, 2]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=12, max_size=12), min_size=3, max_size=3),
)
def test_every_task_with_a_weight_gets_its_turn(weights):
    weights[0][:] = [max(w, 0.5) if not (a or b) else w for w, a, b in zip(*weights, strict=True)]
    made = plan(weights=[[[step, w] for step, w in enumerate(ws)] for ws in weights])
    taken = [turn for step in range(12) for turn in made[step]]
    assert len(taken) == 12
    assert all(turn.weight == weights[turn.task][step] > 0 for step, turn in enumerate(taken))
    for task, ws in enumerate(weights):
        assert [turn.visit for turn in taken if turn.task == task] == list(range(made.visits_before(12)[task]))
        for start in range(10):  # in three steps, each task that could be taken all along is taken
            if all(ws[start : start + 3]):
                assert task in {turn.task for turn in taken[start : start + 3]}


def test_proportional_draws_by_weight_and_each_window_once():
    made = plan("proportional", (1.0, 3.0, 0.0), max_steps=4000)
    turns = [turn for step in range(4000) for turn in made[step]]
    counts = Counter(turn.task for turn in turns)
    assert set(counts) == {0, 1}
    assert abs(counts[0] - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5
    for task in (0, 1):
        assert [turn.visit for turn in turns if turn.task == task] == list(range(counts[task]))
    assert {turn.weight for turn in turns} == {1.0}


def test_joint_takes_all_and_leaves_out_weight_zero():
    made = plan("joint", (1.0, [[0, 0.0], [4, 2.0]], 0.5))
    assert made[0] == [Turn(0, 0, 1.0), Turn(2, 0, 0.5)]
    assert made[2] == [Turn(0, 2, 1.0), Turn(1, 1, 1.0), Turn(2, 2, 0.5)]
    assert made[11][1].weight == 2.0


def test_a_step_is_a_function_of_seed_and_step_alone():
    for schedule in ("alternate", "proportional", "joint"):
        forth = plan(schedule, max_steps=40)
        longer = plan(schedule, max_steps=90)
        assert [forth[step] for step in range(40)] == [longer[step] for step in range(40)]
    assert [plan("proportional", seed=1)[s] for s in range(12)] != [plan("proportional", seed=2)[s] for s in range(12)]


def test_weights_along_points():
    made = plan("alternate", ([[0, 1.0], [9, 0.1]], 1.0, [[3, 5.0]]))
    assert [made[step][0].weight for step in (0, 3, 9)] == pytest.approx([1.0, 0.7, 0.1])
    assert made[2][0].weight == 5.0


def test_stages_take_their_tasks_and_restart_the_rate():
    stages = [{"steps": 4, "tasks": ["nsp"]}, {"steps": 6, "tasks": ["mlm", "clm"], "restart": True}, {"steps": 2}]
    made = plan(stages=stages, max_steps=-1)
    assert made.max_steps == 12
    assert [made[step][0].task for step in range(12)] == [2] * 4 + [0, 1] * 3 + [0, 1]
    assert [made.course(step) for step in (0, 3, 4, 11)] == [(0, 4), (0, 4), (4, 12), (4, 12)]
    assert made.visits_before(12) == [4, 4, 4]
    assert plan(stages=stages, schedule="proportional", max_steps=-1).weights[:4].argmax(1).tolist() == [2] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "random"}, "task_schedule: got 'random'; one of alternate, proportional, joint"),
        ({"weights": (1.0, -1.0, 1.0)}, "the weight of 'clm' is -1.0"),
        ({"weights": (1.0, "x", 1.0)}, "the weight of 'clm' is 'x'"),
        ({"weights": (1.0, [[5, 1.0], [2, 1.0]], 1.0)}, "with rising steps"),
        ({"weights": (0.0, 0.0, [[0, 1.0], [4, 0.0]])}, "at step 4 no task has a weight"),
        ({"weights": (1.0, True, 1.0)}, "the weight of 'clm' is True"),
        ({"weights": (1.0, [0, 1, 4, 2], 1.0)}, "the weight of 'clm' is [0, 1, 4, 2]; wanted a number >= 0, or points"),
        ({"weights": (1.0, [[0, True]], 1.0)}, "the weight of 'clm' is [[0, True]]"),
        ({"weights": (1.0, [["0", "1"]], 1.0)}, "the weight of 'clm' is [['0', '1']]"),
        ({"weights": (1.0, [], 1.0)}, "the weight of 'clm' is []"),
        ({"stages": [{"steps": True}], "max_steps": -1}, "number 0 is {'steps': True}; wanted steps"),
        (
            {"stages": [{"steps": 2}, {"steps": 2, "restart": "no"}], "max_steps": -1},
            "number 1 is {'steps': 2, 'restart'",
        ),
        ({"stages": [{"steps": 2, "tasks": []}], "max_steps": -1}, "perhaps tasks (a list of names; all without it)"),
        (
            {"stages": [{"steps": 2, "tasks": "mlm"}], "max_steps": -1},
            "number 0 is {'steps': 2, 'tasks': 'mlm'}; wanted",
        ),
        ({"stages": [{"steps": 2, "tasks": {"mlm": 1}}], "max_steps": -1}, "perhaps tasks (a list of names"),
        ({"stages": [{"steps": 2, "tasks": ["mlm", "mlm"]}], "max_steps": -1}, "a task is named twice"),
        ({"stages": [5], "max_steps": -1}, "number 0 is 5; wanted steps"),
        ({"stages": [{"tasks": ["mlm"]}], "max_steps": -1}, "number 0 is {'tasks': ['mlm']}; wanted steps"),
        ({"stages": [{"steps": 3, "tasks": ["x"]}], "max_steps": -1}, "has task 'x'; the tasks are mlm, clm, nsp"),
        ({"stages": [{"steps": 3}]}, "max_steps is 12, but the stages have 3 steps"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(**options)


def test_the_last_task_is_drawn_at_the_edge():
    made = plan("proportional", (0.1, 0.2, 0.3), max_steps=20000)
    assert made.chosen.sum(1).tolist() == [1] * 20000
    np.testing.assert_allclose(made.chosen.mean(0), [1 / 6, 1 / 3, 1 / 2], atol=0.02)
