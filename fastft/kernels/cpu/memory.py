"""Large buffers on huge pages; see csrc/cpu/memory.h."""

from torch import Tensor

from fastft import _cpu

LARGE = 8 << 20  # bytes; below, page faults do not show


def advise(buffer: Tensor) -> None:
    """Ask for huge pages under a buffer not yet written; nothing for one that is small or not on the CPU."""
    if buffer.nbytes >= LARGE and buffer.device.type == "cpu":
        _cpu.advise_huge_pages(buffer.data_ptr(), buffer.nbytes)
