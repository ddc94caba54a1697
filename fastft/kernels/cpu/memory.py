"""Large buffers on huge pages, see csrc/cpu/memory.h, and zeros that nobody has to write."""

import math
import mmap

import torch
from torch import Tensor

from fastft import _cpu

LARGE = 8 << 20  # bytes; below, page faults do not show
FRESH = 32 << 20  # bytes; malloc takes larger buffers from the system each time, smaller ones it may have at hand


def advise(buffer: Tensor) -> None:
    """Ask for huge pages under a buffer not yet written; nothing for one that is small or not on the CPU."""
    if buffer.nbytes >= LARGE and buffer.device.type == "cpu":
        _cpu.advise_huge_pages(buffer.data_ptr(), buffer.nbytes)


def zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """Zeros as the system hands out memory, on huge pages; None below `FRESH`, or where there is no such memory."""
    size = math.prod(shape) * dtype.itemsize
    if size < FRESH or not hasattr(mmap, "MAP_ANONYMOUS"):
        return None
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # more than the system promises: torch says so
        return None
    buffer = torch.frombuffer(pages, dtype=dtype).view(shape)
    advise(buffer)
    return buffer
