"""Triton kernels compiled for GPUs that are not there: what the launchers launch, with the arguments they give."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 90, 100)  # compute capabilities, times 10


class Compiled(NamedTuple):
    name: str
    registers: int  # per thread
    stack: int  # bytes of local memory per thread
    spills: int  # instructions of inner loops that access it
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
    """With what ptxas, which comes with triton, used."""
    metadata, ptx = kernel.metadata, kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()

        def dump(what: str) -> str:
            command = [triton.knobs.nvidia.cuobjdump.path, what, cubin.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump("-res-usage"))}
        stack = usage["STACK"] + usage["LOCAL"]
        return Compiled(
            metadata.name, usage["REG"], stack, inner_spills(dump("-sass")) if stack else 0, metadata.shared, ptx
        )


def inner_spills(sass: str) -> int:
    """Accesses to local memory between the ends of loops that hold no other loop."""
    code = [(int(address, 16), text) for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/ +([^;]*);", sass)]
    ends: dict[int, int] = {}  # of a loop, by its start: the last branch back to there
    for address, text in code:
        if (to := re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text)) and (start := int(to[1], 16)) < address:
            ends[start] = address
    inner = [
        range(start, end) for start, end in ends.items() if not any(start < s and e <= end for s, e in ends.items())
    ]
    return sum(bool(re.search(r"\b(LDL|STL)\b", text)) and any(address in r for r in inner) for address, text in code)
