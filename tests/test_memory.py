"""Peaks are what was used since the reset, freed memory included and kept memory not."""

import pytest
import torch

from fastft import memory
from fastft.memory import memory_now, peak_memory, reset_peak_memory

CPU = torch.device("cpu")
SIZE = 192 << 20  # bytes: large enough for the allocator to give it back


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="the peak can be reset on Linux only")
def test_peak_is_what_was_used_since_the_reset() -> None:
    before = memory_now(CPU)
    reset_peak_memory(CPU)
    block = torch.ones(SIZE // 4)
    del block
    peak = peak_memory(CPU)
    assert 0.95 * SIZE < peak - before < 1.3 * SIZE
    memory_now(CPU)  # gives back what the allocator keeps
    reset_peak_memory(CPU)
    assert peak_memory(CPU) - before < 0.5 * SIZE


@pytest.mark.skipif(not hasattr(memory.LIBC, "malloc_trim"), reason="glibc only")
def test_freed_memory_that_the_allocator_keeps_is_not_in_use() -> None:
    """Many small blocks stay with the process when freed, merged into large ones; large tensors then go there."""
    memory_now(CPU)
    blocks = [torch.ones(1 << 18) for _ in range(256)]  # 1 MiB each
    keep = torch.ones(1 << 18)
    del blocks
    before = memory_now(CPU)
    reset_peak_memory(CPU)
    block = torch.ones(SIZE // 4)
    assert peak_memory(CPU) - before > 0.95 * SIZE
    del block, keep
