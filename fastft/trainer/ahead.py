"""The next step's data is made while this step is computed, so that no step waits for it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`ahead[step]` is `make(step)`, and sets about `make(step + 1)` in a thread of its own.

    `make` is a pure function of the step, so what was made for a step that never comes is thrown away unharmed. What it
    raises is raised here.
    """

    def __init__(self, make: Callable[[int], T], end: int) -> None:
        self._make, self._end = make, end
        self._pool = ThreadPoolExecutor(1, "fastft-data")
        self._next: tuple[int, Future[T]] | None = None

    def __getitem__(self, step: int) -> T:
        ready = self._next is not None and self._next[0] == step
        made = self._next[1].result() if ready and self._next else self._make(step)
        self._next = (step + 1, self._pool.submit(self._make, step + 1)) if step + 1 < self._end else None
        return made

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
