"""Pointers of csrc/cpu/leap.cpp; contract: kernels/reference/leap.py."""

import math
import sys
from typing import Any

from torch import Tensor

from fastft import _cpu

TINY = sys.float_info.min


def why_not(departures: Tensor) -> str | None:
    return None if departures.device.type == "cpu" else f"device is {departures.device}"


def advance(leaps: Any, shrink: float, lr: float) -> None:
    beta1, beta2 = leaps.beta1, leaps.beta2
    _cpu.advance_leaps(
        beta1, beta2, math.log(max(beta1, TINY)), math.log(beta2), leaps.first, leaps.count, leaps.reach,
        leaps.moments.data_ptr(), leaps.departures.data_ptr(), math.log(shrink), lr,
    )  # fmt: skip
