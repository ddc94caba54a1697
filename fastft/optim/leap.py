"""What any number of AdamW steps with a zero gradient do to a row, in a few operations per element.

A row left after step s with moments m and v has at step t, with x = sqrt(v) and P the product of the weight decays,

    p_t = p_s P - (m / x) sum_j q_j / (1 + (eps / x) z_j),   j = 1 .. t - s
    z_j = sqrt(1 - beta2^(s+j)) beta2^(-j/2)
    q_j = z_j lr_(s+j) beta1^j / (1 - beta1^(s+j)) P(s+j, t)

and m beta1^(t-s), v beta2^(t-s). q and z depend on s and t, not on the element: the sum over j is an integral of
1 / (1 + c z) over the measure q, which the two-point Gauss rule of its moments 0 to 3 gives to (c dz / 2)^4 or so.
The moments of each s follow from step to step; after some hundred steps q_j is nothing.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastft import dispatch
from fastft.optim.replay import Mirror

NEGLIGIBLE = 1e-12  # of the first term
CLOSE = 0.1  # of c dz / 2 by 1 + c z_1: beyond, the rule is not good enough
NUMBERS = 9  # per row: P, two weights, two nodes, dz / 2, z_1, beta1^k, beta2^k


class Leaps:
    """What takes a row from each step s at which it may have been left, s from 0, to the last of `count` steps.

    `moments` (S, 4) are those of q. `departures` (S, 9) are, up to s, logs of the products P, beta1^s and beta2^s, then
    weights without P(s, t), nodes, dz / 2, z_1. Both on the CPU, in fp64. A step changes the last `reach` of them.
    """

    def __init__(self, beta1: float, beta2: float, first: int) -> None:
        """`first` steps were taken before those to come."""
        self.beta1, self.beta2, self.first = beta1, beta2, first
        ratio = beta1 / math.sqrt(beta2) if beta2 else 1.0
        self.possible = ratio < 1
        self.reach = math.ceil(math.log(NEGLIGIBLE) / math.log(ratio)) if 0 < ratio < 1 else 1
        self.moments = torch.zeros(64, 4, dtype=torch.float64, device="cpu")
        self.departures = torch.zeros(64, NUMBERS, dtype=torch.float64, device="cpu")
        self.count = 0
        self._mirror = Mirror()

    def append(self, numbers: Sequence[float]) -> None:
        """The next step, by its numbers as `SparseAdamW` has them."""
        shrink, *_, lr = numbers
        self.possible = self.possible and shrink > 0
        if not self.possible:
            return
        self.count += 1
        if self.count == len(self.departures):
            self.moments, self.departures = (
                torch.cat([x, torch.zeros_like(x)]) for x in (self.moments, self.departures)
            )
        dispatch.pick("leap", dispatch.BACKENDS, "auto", self.departures).advance(self, shrink, lr)
        self._mirror.changed(max(0, self.count - self.reach))

    def rows(self, last: Tensor, ids: Tensor) -> Tensor:
        """(K, NUMBERS) fp32 for rows `ids` (K,), left after the steps last[ids], counted from the first append.

        On a GPU without a synchronisation.
        """
        departures = self.departures[: self.count + 1]
        if ids.device.type != "cpu":
            departures = self._mirror.updated(departures, ids.device)
        left, now = departures.index_select(0, last[ids]), departures[self.count]
        powers = (now[:3] - left[:, :3]).exp()
        product = powers[:, :1]
        return torch.cat([product, left[:, 3:5] * product, left[:, 5:], powers[:, 1:]], 1).float()


def leap(p: Tensor, m: Tensor, v: Tensor, rows: Tensor, eps: float) -> Tensor:
    """Take p, m, v (K, D) to the end, in place; (K, D) where that was not possible."""
    product, w1, w2, n1, n2, half, z_1, b1, b2 = rows.t()[:, :, None]  # (K, 1) each
    x = v.sqrt()
    x1, x2 = x + eps * n1, x + eps * n2
    p.mul_(product).sub_(torch.where(m == 0, 0, m * (w1 * x2 + w2 * x1) / (x1 * x2)))
    rest: Tensor = (eps * half > CLOSE * (x + eps * z_1)) & (m != 0)
    m.mul_(b1)
    v.mul_(b2)
    return rest
