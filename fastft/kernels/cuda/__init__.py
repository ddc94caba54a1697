"""CUDA C++ (fastft._cuda), for any torch: NVIDIA GPUs from compute capability 8.0 on, clusters from 9.0 on."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("fastft._cuda") is None:
    raise ImportError(
        "fastft was installed without CUDA kernels; build it where nvcc is: pip install --no-binary fastft fastft"
    )

from fastft import _cuda
from fastft.kernels.cuda.tuning import Device

OLDEST = 80  # 10 times the compute capability: bf16 conversions and copies to shared memory


def describe() -> str:
    if why := unusable() or too_old(0):
        raise ImportError(why)
    return f"CUDA {runtime()} for {_cuda.architectures}, {torch.cuda.get_device_name(0)}"


def refusal(x: Tensor) -> str | None:
    """Why no kernel can run where `x` is, or None."""
    if x.device.type != "cuda":
        return f"device is {x.device}"
    return unusable() or too_old(torch.cuda.current_device() if x.device.index is None else x.device.index)


@functools.cache
def unusable() -> str | None:
    """Why no device can be used at all, or None."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return "torch sees no NVIDIA GPU"
    if why := _cuda.why_no_device():  # a driver older than the runtime linked in, which need not be torch's
        return f"fastft has CUDA {runtime()}: {why}"
    return None


def runtime() -> str:
    version = _cuda.runtime_version()
    return f"{version // 1000}.{version % 1000 // 10}"


def too_old(index: int) -> str | None:
    capability = limits(index).capability
    if capability < OLDEST:
        return f"compute capability is {capability / 10}; expected {OLDEST / 10} or later"
    return None


@functools.cache
def limits(index: int) -> Device:
    return Device(*_cuda.device_limits(index))


@contextmanager
def launching_on(x: Tensor) -> Iterator[int]:
    """Makes x's device the current one and gives its current stream."""
    with torch.cuda.device(x.device):
        yield torch.cuda.current_stream(x.device).cuda_stream
