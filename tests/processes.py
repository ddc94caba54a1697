"""Run a function on several gloo processes on the CPU; what fails in one of them fails here, with its traceback."""

import faulthandler
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

IMPORTED = ["torch._dynamo", "torch.distributed.fsdp", "peft"]  # once, by what all fork from
STALLED = 60.0  # seconds that a collective waits for the other ranks: long before the test is given up
GIVEN_UP = 120.0  # seconds for everything


def run_on(n: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(rank, n, *args)` on `n` fresh processes, in a process group, on one thread each.

    `function` and `args` are pickled, so `function` is one of a module, not of another function. The processes fork
    from a fresh one that has imported what takes seconds, and live through nothing that earlier tests did.

    Raises:
        ProcessRaisedException: a process failed; the message holds its traceback.
        TimeoutError: not all of them were done in time; those left are killed.
    """
    multiprocessing.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        processes = multiprocessing.start_processes(
            member, (n, f"file://{folder}/rendezvous", function, args), n, join=False, start_method="forkserver"
        )
        end = time.monotonic() + GIVEN_UP
        try:
            while not processes.join(timeout=1):
                if time.monotonic() > end:
                    raise TimeoutError(f"{function.__name__} on {n} processes is not done after {GIVEN_UP:g} s")
        finally:
            for process in processes.processes:
                process.kill()
                process.join()


def member(rank: int, n: int, rendezvous: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=n, timeout=timedelta(seconds=STALLED)
    )
    try:
        function(rank, n, *args)
    except pytest.fail.Exception as failure:  # is no Exception, and would end the process without a word
        raise AssertionError(str(failure)) from failure
    finally:
        distributed.destroy_process_group()
