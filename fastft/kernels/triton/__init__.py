"""Kernels in Triton: NVIDIA from compute capability 8.0 on; AMD and Intel GPUs where Triton runs them (untested).

With TRITON_INTERPRET=1 in the environment before the first import they run on the CPU, slowly, for tests.
"""

# mypy: disable-error-code="import-untyped, import-not-found"
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

try:
    import triton
except ImportError as error:
    raise ImportError("triton is not installed; it comes with torch for CUDA, ROCm and XPU") from error

INTERPRETED = bool(triton.knobs.runtime.interpret)
OLDEST = (8, 0)  # compute capability with bf16 arithmetic


def describe() -> str:
    if INTERPRETED:
        return f"triton {triton.__version__}, interpreted on the CPU"
    if torch.cuda.is_available():
        if why := too_old(0):
            raise ImportError(why)
        return f"triton {triton.__version__}, {torch.cuda.get_device_name(0)}"
    if torch.xpu.is_available():
        return f"triton {triton.__version__}, {torch.xpu.get_device_name(0)}"
    raise ImportError("no GPU that torch can use")


def refusal(x: Tensor) -> str | None:
    """Why no kernel can run where `x` is, or None."""
    if INTERPRETED:
        return None if x.device.type == "cpu" else f"device is {x.device}, but TRITON_INTERPRET=1 runs on the CPU"
    if x.device.type not in ("cuda", "xpu"):
        return f"device is {x.device}"
    return too_old(x.device.index) if x.device.type == "cuda" else None


def too_old(index: int | None) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and capability < OLDEST:
        return f"compute capability is {capability[0]}.{capability[1]}; Triton needs {OLDEST[0]}.{OLDEST[1]}"
    return None


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Makes x's device the current one, on whose current stream Triton launches."""
    if x.device.type == "cuda":
        return torch.cuda.device(x.device)
    return torch.xpu.device(x.device) if x.device.type == "xpu" else nullcontext()
