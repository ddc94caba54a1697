"""Triton kernels on the CPU: calls to a process that imports triton with TRITON_INTERPRET=1."""

import functools
import importlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def interpreted(module: str, function: str, *args: Any, **options: Any) -> Any:
    """`module.function(*args, **options)` there. Tensors are shared: what it writes in place is seen here."""
    return worker().submit(call, module, function, args, options).result()


@functools.cache
def worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start)


def start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # which also fills uninitialised memory with NaN
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    interpreter._convert_float = functools.partial(converted, interpreter._convert_float)
    interpreter._patch_lang = functools.partial(patched_once, interpreter._patch_lang, set())


def converted(original: Any, data: Any, source: Any, result: Any, rounding: Any) -> Any:
    """Triton's interpreter cuts off where a GPU rounds to the nearest bf16."""
    if (source.name, result.name) != ("fp32", "bf16"):
        return original(data, source, result, rounding)
    return torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16).view(torch.uint16).numpy()


def patched_once(original: Any, done: set[str], function: Any) -> Any:
    """Triton puts its language's functions in place again at every call of every function: half of the time."""
    langs = {name for name in ("tl", "core") if name in function.__globals__}
    if not langs <= done:
        original(function)
        done |= langs
        for name in langs:  # in 3.6 it takes int() of an array with one dimension, which numpy 2.4 refuses
            function.__globals__[name].tensor.__index__ = lambda self: int(self.handle.data.item())
    return SimpleNamespace(restore=lambda: None)


def call(module: str, function: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return getattr(importlib.import_module(module), function)(*args, **options)
