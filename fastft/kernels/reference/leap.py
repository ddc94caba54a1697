"""Two-point Gauss rules that stand for missed AdamW steps, in plain torch; fastft/optim/leap.py has the formulas."""

import math
import sys
from typing import Any

import torch
from torch import Tensor

TINY = sys.float_info.min
SINGLE = 1e-12  # of the mean squared: less variance is one node


def why_not(departures: Tensor) -> str | None:
    return None


def advance(leaps: Any, shrink: float, lr: float) -> None:
    """Departures and moments of step `leaps.count`, and what it changes in those of the `leaps.reach` before it."""
    t, n = leaps.first + leaps.count, min(leaps.reach, leaps.count)
    part, j = slice(leaps.count - n, leaps.count + 1), torch.arange(n, -1, -1, dtype=torch.float64, device="cpu")
    leaps.departures[leaps.count, 0] = leaps.departures[leaps.count - 1, 0] + math.log(shrink)
    decay, s = leaps.departures[part, 0], leaps.count - j
    z = math.sqrt(1 - leaps.beta2**t) * leaps.beta2 ** (-j / 2)
    q = z * leaps.beta1**j * (lr / (1 - leaps.beta1**t)) * (decay - decay[-1]).exp() * (j > 0)
    leaps.moments[part] += torch.stack([q, q * z, q * z**2, q * z**3], 1)
    total, *rest = leaps.moments[part].unbind(1)
    first, second, third = (moment / total.clamp(min=TINY) for moment in rest)
    z_1 = (1 - leaps.beta2 ** (t - j + 1)).sqrt() * leaps.beta2**-0.5
    mean = torch.where(total > 0, first, z_1)
    variance = (second - mean**2).clamp(min=0)
    single = variance <= SINGLE * mean**2
    skew = torch.where(single, 0, (third - 3 * mean * second + 2 * mean**3) / (2 * variance))
    root = (skew**2 + variance).sqrt()
    share = torch.where(single, 0.5, (skew + root) / (2 * root))
    logs = [decay, s * math.log(max(leaps.beta1, TINY)), s * math.log(leaps.beta2)]
    nodes = [total * share, total * (1 - share), mean + skew - root, mean + skew + root]
    leaps.departures[part] = torch.stack([*logs, *nodes, (torch.where(j > 0, z, z_1) - z_1) / 2, z_1], 1)
