"""Adagrad for tables: exactly torch's, at the cost of the touched rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fastft.optim.replay import Steps
from fastft.optim.row_optimizer import RowOptimizer, non_negative


@dataclass(frozen=True)
class Rule:
    """Numbers of a step: lr / (1 + (t - 1) lr_decay), weight_decay."""

    eps: float
    rowwise: bool
    initial: float

    name: ClassVar[str] = "adagrad"
    width: ClassVar[int] = 2

    def buffers(self, p: Tensor) -> tuple[list[int], list[float]]:
        return [1 if self.rowwise else p.shape[1]], [self.initial]

    def leaps(self, first: int) -> None:
        return None

    def moves_idle_rows(self, steps: Steps) -> bool:
        return self.idle_rows_gain_state(steps)

    def idle_rows_gain_state(self, steps: Steps) -> bool:
        """Whether a row without a gradient has state, of its weight decay."""
        return bool(steps.matrix()[:, 1].any())

    def step(self, p: Tensor, buffers: Sequence[Tensor], g: Tensor, numbers: Sequence[float]) -> None:
        """In place on rows p, g (K, D), in the order of operations of torch's single-tensor Adagrad."""
        (total,), (rate, decay) = buffers, numbers
        g = g.add(p, alpha=decay) if decay else g
        if self.rowwise:
            total.add_(g.square().mean(1, keepdim=True))
        else:
            total.addcmul_(g, g, value=1)
        p.addcdiv_(g, total.sqrt().add_(self.eps).expand_as(p), value=-rate)


class SparseAdagrad(RowOptimizer):
    r"""Adagrad (Duchi et al. 2011) for `SparseEmbedding` tables, equal to `torch.optim.Adagrad` over the whole table.

        g <- g + weight_decay p;   s <- s + g^2
        p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    Without weight decay a row does not move where it has no gradient, so nothing lags behind.

    Args:
        params, semantics, rounding, backend: as in `SparseAdamW`.
        lr, lr_decay, weight_decay, initial_accumulator_value, eps: as in `torch.optim.Adagrad`.
        rowwise: one sum per row, of mean(g^2): D times less state.

    Raises:
        ValueError: an option's value; a dense gradient; eps changed while rows lag behind; rowwise or
            initial_accumulator_value changed.
    """

    names = ("sum",)
    constants = ("eps", "rowwise", "initial_accumulator_value")

    def __init__(
        self, params: Any, lr: float = 1e-2, lr_decay: float = 0.0, weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0, eps: float = 1e-10, *, rowwise: bool = False, semantics: str = "dense",
        rounding: str = "master", backend: str = "auto",
    ) -> None:  # fmt: skip
        non_negative(
            lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps,
            initial_accumulator_value=initial_accumulator_value,
        )  # fmt: skip
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "rowwise": rowwise,
            "initial_accumulator_value": initial_accumulator_value,
        }  # fmt: skip
        super().__init__(params, defaults, semantics=semantics, engine="bitwise", rounding=rounding, backend=backend)

    def numbers(self, group: dict[str, Any], step: int) -> tuple[float, ...]:
        return float(group["lr"]) / (1 + (step - 1) * group["lr_decay"]), group["weight_decay"]

    def rule(self, group: dict[str, Any]) -> Rule:
        return Rule(group["eps"], group["rowwise"], group["initial_accumulator_value"])
