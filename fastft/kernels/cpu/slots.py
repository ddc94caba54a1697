"""Pointers of csrc/cpu/slots.cpp; contract: kernels/reference/slots.py."""

from torch import Tensor

from fastft import _cpu


def why_not(slot: Tensor) -> str | None:
    return None if slot.device.type == "cpu" else f"device is {slot.device}"


def assigned(slot: Tensor, ids: Tensor, used: int) -> int:
    ids = ids.contiguous()
    return _cpu.assign_slots(slot.data_ptr(), ids.data_ptr(), len(ids), used)
