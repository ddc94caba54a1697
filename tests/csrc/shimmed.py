"""fastft._cuda built by g++ over cuda_shim.h, and fastft.kernels.cuda on top of it: CUDA kernels on CPU tensors."""

import importlib
import importlib.util
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

import fastft
import fastft.kernels

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = (CSRC / "bindings" / "cuda.cpp", *sorted((CSRC / "cuda").glob("*.cu")))
# Misaligned accesses, overflowing offsets and the like print "runtime error". Fortified jumps would refuse to go from
# one stack to another.
FLAGS = (
    "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC",
    "-fsanitize=undefined", "-U_FORTIFY_SOURCE",
)  # fmt: skip
PACKAGE = "fastft.kernels.cuda"
OPS = (".cross_entropy", ".rows", ".segment_sum", ".row_update", ".grouping")
SCHEDULES = range(4)  # bit 0: threads in descending order, bit 1: background copies as late as they may


def build(compiler: str, folder: Path) -> Path:
    """The module as a shared library in `folder`; skips where what it needs is missing."""
    pybind11 = pytest.importorskip("pybind11", reason="fastft._cuda over the shim needs pybind11's headers")
    include = (HERE, pybind11.get_include(), sysconfig.get_path("include"))
    command = [compiler, *FLAGS, '-DFASTFT_CUDA_ARCHITECTURES="shim"', *(f"-I{path}" for path in include)]

    def compile(source: Path) -> Path:
        run(*command, "-x", "c++", "-c", source, "-o", folder / f"{source.name}.o")
        return folder / f"{source.name}.o"

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile, SOURCES))
    library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    run(compiler, *FLAGS, "-shared", *objects, "-o", library)
    return library


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Shimmed:
    """`fastft.kernels.cuda` and its ops, launching by `schedule`."""

    def __init__(self, native: ModuleType) -> None:
        self.native = native
        self.schedule = 0
        self.cuda, self.tuning = (importlib.import_module(PACKAGE + name) for name in ("", ".tuning"))
        ops = [importlib.import_module(PACKAGE + name) for name in OPS]
        self.cross_entropy, self.rows, self.segment_sum, self.row_update, self.grouping = ops
        limits = self.cuda.limits
        for module in ops:
            module.launching_on = self.launching_on  # type: ignore[attr-defined]
        self.cross_entropy.limits = lambda index: limits(0)  # type: ignore[attr-defined]

    @contextmanager
    def launching_on(self, x: Tensor) -> Iterator[int]:
        yield self.schedule


@contextmanager
def shimmed(library: Path) -> Iterator[Shimmed]:
    """With it imported in the place of what is installed."""
    spec = importlib.util.spec_from_file_location("shimmed._cuda", library)  # pybind11 keeps one module per name
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    with pytest.MonkeyPatch.context() as patch:
        placeholder: Any = None
        for name in ("", ".tuning", *OPS):
            patch.setitem(sys.modules, PACKAGE + name, placeholder)  # to be undone
            del sys.modules[PACKAGE + name]
        patch.setitem(sys.modules, "fastft._cuda", native)
        patch.setattr(fastft, "_cuda", native, raising=False)
        patch.setattr(fastft.kernels, "cuda", placeholder, raising=False)
        yield Shimmed(native)
