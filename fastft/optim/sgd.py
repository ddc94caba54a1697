"""SGD for tables: exactly torch's, at the cost of the touched rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fastft.optim.replay import Steps
from fastft.optim.row_optimizer import RowOptimizer, non_negative


@dataclass(frozen=True)
class Rule:
    """Numbers of a step: lr, weight_decay, whether it is the first, which fills the momentum buffer."""

    momentum: float
    dampening: float
    nesterov: bool

    name: ClassVar[str] = "sgd"
    width: ClassVar[int] = 3

    def buffers(self, p: Tensor) -> tuple[list[int], list[float]]:
        return ([p.shape[1]], [0.0]) if self.momentum else ([], [])

    def leaps(self, first: int) -> None:
        return None

    def moves_idle_rows(self, steps: Steps) -> bool:
        return bool(self.momentum or steps.matrix()[:, 1].any())

    def idle_rows_gain_state(self, steps: Steps) -> bool:
        """Whether a row without a gradient has state, of its weight decay."""
        return bool(self.momentum and steps.matrix()[:, 1].any())

    def step(self, p: Tensor, buffers: Sequence[Tensor], g: Tensor, numbers: Sequence[float]) -> None:
        """In place on rows p, g (K, D), in the order of operations of torch's single-tensor SGD."""
        lr, decay, first = numbers
        g = g.add(p, alpha=decay) if decay else g
        for buffer in buffers:
            if first:
                buffer.copy_(g)
            else:
                buffer.mul_(self.momentum).add_(g, alpha=1 - self.dampening)
            g = g.add(buffer, alpha=self.momentum) if self.nesterov else buffer
        p.add_(g, alpha=-lr)


class SparseSGD(RowOptimizer):
    r"""SGD with momentum for `SparseEmbedding` tables, equal to `torch.optim.SGD` over the whole table.

        g <- g + weight_decay p
        b <- momentum b + (1 - dampening) g   (b <- g at the first step)
        p <- p - lr (g + momentum b if nesterov, b with momentum, else g)

    for every row at every step, g = 0 where no id was; computed only for rows that are read or touched. Bits are those
    of `torch.optim.SGD(foreach=False)`.

    Args:
        params, semantics, rounding, backend: as in `SparseAdamW`.
        lr, momentum, dampening, weight_decay, nesterov: as in `torch.optim.SGD`; lr and weight_decay may change at each
            step, the others after `flush()`; momentum neither from nor to 0.

    Raises:
        ValueError: an option's value; a dense gradient; momentum changed while rows lag behind.
    """

    names = ("momentum_buffer",)
    constants = ("momentum", "dampening", "nesterov")

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0,
        nesterov: bool = False, *, semantics: str = "dense", rounding: str = "master", backend: str = "auto",
    ) -> None:  # fmt: skip
        non_negative(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening):
            raise ValueError(f"nesterov needs momentum and no dampening; they are {momentum} and {dampening}")
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
        }  # fmt: skip
        super().__init__(params, defaults, semantics=semantics, engine="bitwise", rounding=rounding, backend=backend)

    def numbers(self, group: dict[str, Any], step: int) -> tuple[float, ...]:
        return float(group["lr"]), group["weight_decay"], float(step == 1)

    def rule(self, group: dict[str, Any]) -> Rule:
        return Rule(group["momentum"], group["dampening"], group["nesterov"])
