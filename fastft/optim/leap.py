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
import sys

import numpy as np
import torch
from torch import Tensor

from fastft.optim.replay import Mirror

NEGLIGIBLE = 1e-12  # of the first term
CLOSE = 0.1  # of c dz / 2 by 1 + c z_1: beyond, the rule is not good enough
NUMBERS = 9  # per row: P, two weights, two nodes, dz / 2, z_1, beta1^k, beta2^k


class Leaps:
    """Moments of q for each step s at which rows may have been left, s from 0, and what follows from them.

    In NumPy: they are a few hundred numbers a step, and half of torch's time would be its calls.
    """

    def __init__(self, beta1: float, beta2: float, first: int) -> None:
        """`first` steps were taken before those to come."""
        self.beta1, self.beta2, self.first = beta1, beta2, first
        ratio = beta1 / math.sqrt(beta2)
        self.reach = math.ceil(math.log(NEGLIGIBLE) / math.log(ratio)) if 0 < ratio < 1 else 1
        self.possible = ratio < 1
        self.moments = np.zeros((64, 4))
        self.decay = np.zeros(64)  # log of the product of weight decays up to each step
        self.count = 0
        self._numbers = np.zeros((64, NUMBERS))  # of each s; see `_refresh`
        self._stale = 0  # the first s whose numbers are out of date
        self._mirror = Mirror()

    def append(self, numbers: tuple[float, ...]) -> None:
        """The next step, by its numbers as `SparseAdamW` has them."""
        shrink, *_, lr = numbers
        if self.count + 2 > len(self.decay):
            self.moments, self.decay, self._numbers = (
                np.concatenate([x, np.zeros_like(x)]) for x in (self.moments, self.decay, self._numbers)
            )
        self.possible = self.possible and shrink > 0
        if not self.possible:
            return
        self.count += 1
        t, n = self.first + self.count, min(self.reach, self.count)
        self.decay[self.count] = self.decay[self.count - 1] + math.log(shrink)
        j = np.arange(n, 0, -1)
        part = slice(self.count - n, self.count)
        z = math.sqrt(1 - self.beta2**t) * self.beta2 ** (-j / 2)
        q = z * self.beta1**j * (lr / (1 - self.beta1**t)) * np.exp(self.decay[part] - self.decay[self.count])
        for power in range(4):
            self.moments[part, power] += q
            q = q * z
        self._stale = min(self._stale, self.count - n)

    def _refresh(self) -> None:
        """Numbers of each s, whose last `reach` alone change with a step: logs of the products P, beta1^s and beta2^s
        up to s, weights without P(s, t), nodes, dz / 2, z_1.
        """
        if self._stale > self.count:
            return
        part = slice(self._stale, self.count + 1)
        s = np.arange(self._stale, self.count + 1)
        mu = self.moments[part].T
        t = self.first + s
        z_1 = np.sqrt(1 - self.beta2 ** (t + 1.0)) * self.beta2**-0.5
        reached = np.clip(self.count - s, 1, self.reach)
        z_k = np.sqrt(1 - self.beta2 ** (t + reached + 0.0)) * self.beta2 ** (-reached / 2)
        size = np.maximum(mu[0], sys.float_info.min)
        mean = np.where(mu[0] > 0, mu[1] / size, z_1)  # a node of weight 0 is no division by 0 either
        variance = np.maximum(mu[2] / size - mean**2, 0)
        third = mu[3] / size - 3 * mean * mu[2] / size + 2 * mean**3
        single = variance <= 1e-12 * mean**2
        skew = np.where(single, 0, third / (2 * np.where(single, 1, variance)))
        root = np.sqrt(skew**2 + variance)
        low, high = skew - root, skew + root  # of the nodes, from the mean
        share = np.where(single, 0.5, high / (2 * np.where(single, 1, root)))
        log1, log2 = (math.log(max(beta, sys.float_info.min)) for beta in (self.beta1, self.beta2))
        numbers = [
            self.decay[part], s * log1, s * log2, mu[0] * share, mu[0] * (1 - share), mean + low, mean + high,
            (z_k - z_1) / 2, z_1,
        ]  # fmt: skip
        self._numbers[part] = np.stack(numbers, 1)
        self._mirror.changed(self._stale)
        self._stale = self.count + 1

    def rows(self, last: Tensor) -> Tensor:
        """(K, NUMBERS) fp32 for rows left after the steps `last` (K,), counted from the first append, until now.

        On a GPU without a synchronisation.
        """
        self._refresh()
        numbers = torch.from_numpy(self._numbers[: self.count + 1])
        if last.device.type != "cpu":
            numbers = self._mirror.updated(numbers, last.device)
        if len(numbers) <= len(last):
            return until(numbers[self.count], numbers).index_select(0, last)
        return until(numbers[self.count], numbers.index_select(0, last))


def until(now: Tensor, left: Tensor) -> Tensor:
    """(K, NUMBERS) fp32, from numbers of the steps at which rows were left, and of the last one."""
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
