"""How far a run is: a bar with the time left on a terminal, plain lines in a file or a pipe."""

import time
from types import TracebackType

from rich import progress
from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, nothing in it is markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Progress:
    """Used as a context manager around a run of `total` optimizer steps, of which `done` are behind.

    The time left counts training steps only, at the mean speed of this process's steps.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.done = console, total, done
        self._steps, self._seconds = 0, 0.0
        self._bar = progress.Progress(
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._train = self._bar.add_task("train", total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        say(self.console, text)

    def step(self, loss: float, seconds: float) -> None:
        """One optimizer step has been taken, in `seconds`."""
        self.done, self._steps, self._seconds = self.done + 1, self._steps + 1, self._seconds + seconds
        self._bar.update(self._train, completed=self.done, note=f"loss {loss:.4f}  {self.left()} left")

    def left(self) -> str:
        """Time left, as h:mm:ss."""
        seconds = round((self.total - self.done) * self._seconds / max(1, self._steps))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def subtask(self, name: str) -> "Subtask":
        """A second bar while something else than training runs."""
        return Subtask(self._bar, name)


class Subtask:
    """The bar of an evaluation or of generations, gone when it is over. `seconds` is how long it took."""

    def __init__(self, bar: progress.Progress, name: str) -> None:
        self._bar, self._name, self._started = bar, name, time.perf_counter()

    def __enter__(self) -> "Subtask":
        self._task = self._bar.add_task(self._name, total=None, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._started
        self._bar.remove_task(self._task)

    def update(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
