"""math.cpp compiled as csrc/cpu is, to call it on tensors; csrc/cuda compiled for the CPU, over its shim."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csrc.shimmed import Shimmed, build, shimmed

SOURCES = Path(__file__).parents[2] / "csrc"
FLAGS = (
    "-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip


class Library:
    """`library.function(*tensors and numbers)`: pointers of the tensors, numbers as they are, nothing back."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(self.functions, name)
        function.restype = None

        def call(*args: Any) -> None:
            assert all(a.is_contiguous() for a in args if isinstance(a, Tensor))
            function(*map(as_c, args))

        return call

    def map(self, name: str, *inputs: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """One output of `dtype` for each row of the inputs."""
        out = torch.empty(len(inputs[0]), dtype=dtype)
        getattr(self, name)(*inputs, out, len(out))
        return out


def as_c(value: Tensor | int | float) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


@pytest.fixture(scope="session")
def compiler() -> str:
    names = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    path = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if path is None:
        pytest.skip("no C++ compiler: none of $CXX, g++, c++, clang++ is on PATH")
    return path


@pytest.fixture(scope="session", params=[(), ("-march=native",)], ids=["baseline", "native"])
def math(request: pytest.FixtureRequest, compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The headers of csrc/math for the baseline instruction set, and for this machine's, which may fuse."""
    path = tmp_path_factory.mktemp("csrc") / "math.so"
    source = Path(__file__).with_name("math.cpp")
    command = [compiler, *FLAGS, *request.param, "-I", SOURCES / "math", "-shared", "-fPIC", source, "-o", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Library(path)


@pytest.fixture(scope="session")
def shim_library(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(compiler, tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="module")
def shimmed_package(shim_library: Path) -> Iterator[Shimmed]:
    with shimmed(shim_library) as found:
        yield found


@pytest.fixture
def shim(shimmed_package: Shimmed, capfd: pytest.CaptureFixture[str]) -> Iterator[Shimmed]:
    """`fastft.kernels.cuda` on the CPU."""
    yield shimmed_package
    assert "runtime error" not in capfd.readouterr().err, "undefined behaviour"
