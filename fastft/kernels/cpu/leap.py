"""Pointers of csrc/cpu/leap.cpp; contract: kernels/reference/leap.py."""

from typing import Any

from torch import Tensor

from fastft import _cpu


def why_not(departures: Tensor) -> str | None:
    return None if departures.device.type == "cpu" else f"device is {departures.device}"


def advance(leaps: Any, shrink: float, lr: float) -> None:
    _cpu.advance_leaps(
        leaps.beta1, leaps.beta2, leaps.first, leaps.count, leaps.reach, leaps.moments.data_ptr(),
        leaps.departures.data_ptr(), shrink, lr,
    )  # fmt: skip
