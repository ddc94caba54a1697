"""Which tasks each optimizer step learns from, and how much: a pure function of (seed, step)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

SCHEDULES = ("alternate", "proportional", "joint")


class Turn(NamedTuple):
    """A task's part in a step: its number, which of its windows, and what its loss is multiplied by."""

    task: int
    visit: int
    weight: float


@dataclass(frozen=True)
class Stage:
    """The first step of a stage, the one behind its last, the tasks that take part, and whether the learning rate
    begins anew."""

    start: int
    end: int
    tasks: tuple[int, ...]
    restart: bool


class Plan:
    r"""Turns of every step of a run of T steps over K tasks with weights w_k(step).

        alternate:      one task a step, in turn, those of weight 0 passed over; its loss is multiplied by w_k
        proportional:   one task a step, drawn with probability w_k / sum w; its loss is taken as it is
        joint:          a window of every task in every step; the loss is sum_k w_k L_k, without tasks of weight 0

    Args:
        names: of the tasks, in order.
        weights: of each task: a number, or points [[step, weight], ...] with straight lines between them.
        schedule: one of `SCHEDULES`.
        stages: mappings with `steps`, and perhaps `tasks` (names; default: all) and `restart` (of the learning rate,
            default false), one after another; empty: one stage of `max_steps`.
        seed: of the draw of "proportional".
        max_steps: T; -1: the sum of the stages.

    Raises:
        ValueError: a schedule, weight or stage that cannot be meant, a step without a weight above 0.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[Any],
        schedule: str,
        stages: Sequence[Any],
        seed: int,
        max_steps: int,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"task_schedule: got {schedule!r}; one of {', '.join(SCHEDULES)} is wanted")
        self.schedule = schedule
        self.stages = read_stages(stages, list(names), max_steps)
        self.max_steps = total = self.stages[-1].end
        self.weights = np.stack([points(name, w, total) for name, w in zip(names, weights, strict=True)], 1)  # (T, K)
        for stage in self.stages:
            idle = np.ones(len(names), bool)
            idle[list(stage.tasks)] = False
            self.weights[stage.start : stage.end, idle] = 0
        empty = np.flatnonzero(self.weights.sum(1) == 0)
        if len(empty):
            raise ValueError(f"tasks: at step {empty[0]} no task has a weight above 0")
        chosen = self._chosen(seed)  # (T, K)
        self.chosen, self.visits = chosen, np.cumsum(chosen, 0) - chosen

    def _chosen(self, seed: int) -> Any:
        """Whether a step takes a window of a task, (T, K)."""
        if self.schedule == "joint":
            return self.weights > 0
        if self.schedule == "alternate":
            active = [task for stage in self.stages for task in self._in_turn(stage)]
        else:
            drawn = np.random.Generator(np.random.Philox(key=seed)).random(self.max_steps)
            bounds = np.cumsum(self.weights, 1)
            bounds /= bounds[:, -1:]
            active = (drawn[:, None] >= bounds).sum(1).tolist()
        chosen = np.zeros(self.weights.shape, bool)
        chosen[np.arange(self.max_steps), active] = True
        return chosen

    def _in_turn(self, stage: Stage) -> Iterator[int]:
        """The task of each step of a stage: the next one in its order whose weight at that step is above 0."""
        taking = (self.weights[stage.start : stage.end] > 0).tolist()
        place = 0
        for weighs in taking:
            while not weighs[stage.tasks[place % len(stage.tasks)]]:
                place += 1
            yield stage.tasks[place % len(stage.tasks)]
            place += 1

    def __getitem__(self, step: int) -> list[Turn]:
        given = self.weights[step] if self.schedule != "proportional" else np.ones(self.weights.shape[1])
        tasks = np.flatnonzero(self.chosen[step])
        return [Turn(int(k), int(self.visits[step, k]), float(given[k])) for k in tasks]

    def visits_before(self, step: int) -> list[int]:
        """Windows of each task that are behind after `step` steps."""
        counts: list[int] = self.chosen[:step].sum(0).tolist()
        return counts

    def course(self, step: int) -> tuple[int, int]:
        """Steps [start, end) over which the learning rate runs at a step: from one restart to the next."""
        starts = [0, *(stage.start for stage in self.stages if stage.restart and stage.start), self.max_steps]
        last = max(i for i in range(len(starts) - 1) if starts[i] <= step)
        return starts[last], starts[last + 1]


def points(name: str, weight: Any, steps: int) -> Any:
    """A weight at each step, (T,)."""
    known = [[0, weight]] if _is_number(weight) else weight
    pairs = isinstance(known, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_number, pair)) for pair in known
    )
    table = np.asarray(known if pairs else [], dtype=float).reshape(-1, 2)
    if not len(table) or not np.isfinite(table).all() or (table < 0).any() or (np.diff(table[:, 0]) <= 0).any():
        raise ValueError(
            f"tasks: the weight of {name!r} is {weight!r}; wanted a number >= 0, or points [[step, weight], ...] with "
            "rising steps"
        )
    return np.interp(np.arange(steps), table[:, 0], table[:, 1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_stages(stages: Sequence[Any], names: list[str], max_steps: int) -> list[Stage]:
    found: list[Stage] = []
    for number, stage in enumerate(stages):
        _check_stage(number, stage)
        taking = names if stage.get("tasks") is None else stage["tasks"]
        missing = [name for name in taking if name not in names]
        if missing:
            raise ValueError(f"stages: number {number} has task {missing[0]!r}; the tasks are {', '.join(names)}")
        start = found[-1].end if found else 0
        order = tuple(names.index(name) for name in taking)
        found.append(Stage(start, start + stage["steps"], order, stage.get("restart", False)))
    if not found:
        return [Stage(0, max_steps, tuple(range(len(names))), False)]
    if max_steps not in (-1, found[-1].end):
        raise ValueError(f"max_steps is {max_steps}, but the stages have {found[-1].end} steps: leave one of them out")
    return found


def _check_stage(number: int, stage: Any) -> None:
    if isinstance(stage, dict) and not set(stage) - {"steps", "tasks", "restart"}:
        steps, tasks, restart = stage.get("steps"), stage.get("tasks"), stage.get("restart", False)
        named = tasks is None or (isinstance(tasks, list) and tasks and all(isinstance(name, str) for name in tasks))
        if type(steps) is int and steps >= 1 and named and isinstance(restart, bool):
            if tasks and len(set(tasks)) < len(tasks):
                raise ValueError(f"stages: number {number} is {stage!r}; a task is named twice")
            return
    raise ValueError(
        f"stages: number {number} is {stage!r}; wanted steps (a whole number >= 1), and perhaps tasks (a list of "
        "names; all without it) and restart (true or false)"
    )
