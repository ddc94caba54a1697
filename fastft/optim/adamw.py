"""AdamW for tables: exactly torch's, at the cost of the touched rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastft.optim.leap import Leaps, leap
from fastft.optim.replay import Steps
from fastft.optim.row_optimizer import RowOptimizer, non_negative


@dataclass(frozen=True)
class Rule:
    """Numbers of a step: 1 - lr weight_decay, lr / (1 - beta1^t), sqrt(1 - beta2^t), lr."""

    beta1: float
    beta2: float
    eps: float
    amsgrad: bool
    rowwise: bool

    name: ClassVar[str] = "adamw"
    width: ClassVar[int] = 4

    def buffers(self, p: Tensor) -> tuple[list[int], list[float]]:
        second = 1 if self.rowwise else p.shape[1]
        widths = [p.shape[1], second] + [second] * self.amsgrad
        return widths, [0.0] * len(widths)

    def leaps(self, first: int) -> Leaps | None:
        return None if self.amsgrad or self.rowwise else Leaps(self.beta1, self.beta2, first)

    def moves_idle_rows(self, steps: Steps) -> bool:
        return True

    def idle_rows_gain_state(self, steps: Steps) -> bool:
        """Whether a row without a gradient has state."""
        return False

    def step(self, p: Tensor, buffers: Sequence[Tensor], g: Tensor, numbers: Sequence[float]) -> None:
        """In place on rows p, g (K, D), in the order of operations of torch's single-tensor AdamW."""
        (m, v, *largest), (shrink, size, correction, _) = buffers, numbers
        p.mul_(shrink)
        m.lerp_(g, 1 - self.beta1)
        if self.rowwise:
            v.mul_(self.beta2).add_(g.square().mean(1, keepdim=True), alpha=1 - self.beta2)
        else:
            v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        if largest:
            v = torch.maximum(largest[0], v, out=largest[0])
        p.addcdiv_(m, (v.sqrt() / correction).add_(self.eps).expand_as(p), value=-size)

    def leap(self, p: Tensor, buffers: Sequence[Tensor], rows: Tensor) -> Tensor:
        return leap(p, buffers[0], buffers[1], rows, self.eps)


class SparseAdamW(RowOptimizer):
    r"""AdamW (arXiv:1711.05101) for `SparseEmbedding` tables, equal to `torch.optim.AdamW` over the whole table.

        p <- p (1 - lr weight_decay)
        m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
        p <- p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    for every row at every step, g = 0 where no id was; computed only for rows that are read or touched. State (8 bytes
    per element, fp32) exists for rows ever touched.

    Args:
        params: tables (V, D), or param groups of them. lr and weight_decay may change at each step; betas and eps only
            after `flush()` (so OneCycleLR and CyclicLR with cycle_momentum=False); amsgrad and rowwise not at all.
        lr, betas, eps, weight_decay, amsgrad: as in `torch.optim.AdamW`.
        rowwise: one second moment per row, beta2 v + (1 - beta2) mean(g^2): half the state.
        semantics: "dense", or "lazy" where a row takes only the steps that touch it, as `torch.optim.SparseAdam`, which
            is another optimizer: untouched rows neither decay nor coast on their momentum.
        engine: "bitwise" replays each missed step, the bits of `torch.optim.AdamW(foreach=False)` on the CPU; "fast"
            takes missed steps at once (fastft/optim/leap.py), closer to exact arithmetic than replaying in fp32 is.
        rounding: how a bf16 or fp16 table takes fp32 values: "master" keeps touched rows in fp32 too, "stochastic"
            (bf16), "nearest".
        backend: "auto", or one of `cuda | triton | cpu | reference`.

    Raises:
        ValueError: an option's value; a dense gradient (a table with another reader); betas or eps changed while rows
            lag behind; amsgrad or rowwise changed.

    Rows are caught up with in the copy that `SparseEmbedding.forward` reads; whatever else reads the table needs
    `flush()` first. The idea of catching up late is old (Caffe2's SmartDecaySparseAdam, HugeCTR); that the result is
    that of dense steps, at every read, is new here.
    """

    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    constants = ("betas", "eps", "amsgrad", "rowwise")

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, *, amsgrad: bool = False, rowwise: bool = False, semantics: str = "dense",
        engine: str = "fast", rounding: str = "master", backend: str = "auto",
    ) -> None:  # fmt: skip
        non_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; expected two numbers in [0, 1)")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad, "rowwise": rowwise,
        }  # fmt: skip
        super().__init__(params, defaults, semantics=semantics, engine=engine, rounding=rounding, backend=backend)

    def numbers(self, group: dict[str, Any], step: int) -> tuple[float, ...]:
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        decay = 1 - lr * group["weight_decay"] if group["weight_decay"] else 1.0
        return decay, lr / (1 - beta1**step), (1 - beta2**step) ** 0.5, lr

    def rule(self, group: dict[str, Any]) -> Rule:
        beta1, beta2 = group["betas"]
        return Rule(beta1, beta2, group["eps"], group["amsgrad"], group["rowwise"])
