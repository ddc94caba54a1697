"""C++ on the CPU: fastft._cpu, for any torch, with the instruction set chosen at load time."""

import torch

from fastft import _cpu


def describe() -> str:
    return f"{_cpu.instruction_set()}, {torch.get_num_threads()} threads"
