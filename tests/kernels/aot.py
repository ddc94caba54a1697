"""Triton kernels compiled for GPUs that are not there: what the launchers launch, with the arguments they give."""

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 90, 100)  # compute capabilities, times 10


class Compiled(NamedTuple):
    name: str
    registers: int  # per thread
    spilled: int  # bytes of local memory per thread
    shared: int  # bytes per block
    ptx: str


class Target:
    """The part of a Triton driver that compiling asks for; the architecture stands for the device."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


@contextmanager
def launches_compiled(architecture: int) -> Iterator[list[Compiled]]:
    """Within it a kernel's launch, on CPU tensors, compiles it and does not run; the list receives each."""
    compiled: list[Compiled] = []

    def compile(kernel: Any, grid: Any) -> Any:
        def run(*args: Any, **options: Any) -> None:
            compiled.append(report(JITFunction.run(kernel, *args, grid=grid, warmup=True, **options)))

        return run

    original, active = JITFunction.__getitem__, triton.runtime.driver._active
    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache
        JITFunction.__getitem__ = compile
        triton.runtime.driver.set_active(Target(architecture))
        try:
            yield compiled
        finally:
            JITFunction.__getitem__ = original
            triton.runtime.driver.set_active(active)


def report(kernel: Any) -> Compiled:
    usage, metadata = resources(kernel.asm["cubin"]), kernel.metadata
    return Compiled(metadata.name, usage["REG"], usage["STACK"] + usage["LOCAL"], metadata.shared, kernel.asm["ptx"])


@functools.cache
def resources(cubin: bytes) -> dict[str, int]:
    """What ptxas, which comes with triton, used."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
