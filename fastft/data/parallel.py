"""Work spread over processes, with results in the order of the work."""

import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # items in flight per process: enough to keep all busy, and a bound on memory

_work: Callable[[Any], Any]  # of a worker process


def ordered(work: Callable[[T], R], items: Iterable[T], num_proc: int) -> Iterator[R]:
    """`map(work, items)` in `num_proc` processes; 0 is this process. Results do not depend on how many there are.

    `work` is sent to each process once, so it and what it holds must be picklable. Processes are spawned and never
    forked, as forking a process with threads may hang; a script that calls this needs its `if __name__ == "__main__"`.
    At most `4 * num_proc` items are taken ahead of the results.

    Raises:
        ValueError: `num_proc` is negative, or `work` cannot be pickled.
        ChildProcessError: a process ended without an answer.
        Exception: whatever `work` or `items` raised first, in the order of the items.
    """
    if num_proc < 0:
        raise ValueError(f"num_proc: got {num_proc}; at least 0 is wanted (0: all in this process)")
    if num_proc == 0:
        yield from map(work, items)
        return
    try:
        pickled = pickle.dumps(work)
    except Exception as error:
        raise ValueError(
            f"num_proc: got {num_proc}, but what is to be done cannot be sent to another process ({error}); define "
            "masks and objectives of your own at the top level of a module, or use num_proc=0"
        ) from None
    pool = ProcessPoolExecutor(num_proc, get_context("spawn"), initializer=_start, initargs=(pickled,))
    pending: deque[Future[Any]] = deque()
    failure: Exception | None = None
    rest = iter(items)
    try:
        while True:
            try:
                item = next(rest)
            except StopIteration:
                break
            except Exception as error:  # results of what came before it are given first
                failure = error
                break
            pending.append(pool.submit(_run, item))
            if len(pending) >= AHEAD * num_proc:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise ChildProcessError(
            f"num_proc={num_proc}: a process ended without an answer. It ran out of memory or was stopped, or the "
            'script that started it has no `if __name__ == "__main__":` around its code; lower num_proc, or use 0'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
    if failure is not None:
        raise failure


def _start(pickled: bytes) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one answers Ctrl-C for all
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are spread over the cores already
    _work = pickle.loads(pickled)


def _run(item: Any) -> Any:
    return _work(item)
