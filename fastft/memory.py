"""Peak memory of a device: allocated on a GPU, resident in this process on a CPU."""

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

LIBC = ctypes.CDLL(None)
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak here. On a CPU only Linux can; elsewhere the peak is that since the process began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_REFS.exists():
        with suppress(OSError):
            CLEAR_REFS.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU, or resident in the whole process for a CPU; the most since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_now(device: torch.device) -> int:
    """Bytes in use at this moment, counted as `peak_memory` counts them.

    On a CPU glibc is first told to return what it holds of freed memory: otherwise the next tensors are put there and
    nothing is seen to grow.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)
    return _status("VmRSS") if STATUS.exists() else peak_memory(device)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
