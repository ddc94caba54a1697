"""A `SparseEmbedding` inside transformers' Trainer: one optimizer of two, and clipping that takes row gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastft.optim import clip_grad_norm_


class RowsAndRest(Optimizer):
    """Two optimizers as one, for where one is asked for: `transformers.Trainer(..., optimizers=(this, scheduler))`.

        table = SparseEmbedding.from_embedding(model.get_input_embeddings())
        model.set_input_embeddings(table)
        rest = [p for p in model.parameters() if p is not table.weight]
        optimizer = RowsAndRest(SparseAdamW([table.weight]), torch.optim.AdamW(rest))
        trainer = Trainer(model, ..., optimizers=(optimizer, None))
        clip_rows(trainer.accelerator)

    Args:
        rows, rest: optimizers of different parameters; `param_groups` are theirs, first those of `rows`, so that a
            learning-rate scheduler sets both. Its steps are a step of each.

    `state_dict` holds both, for Trainer's checkpoints (the model's tables are written up to date when they are saved).
    Raises ValueError where a parameter is in both, or a state is not of two such optimizers.
    """

    def __init__(self, rows: Optimizer, rest: Optimizer) -> None:
        self.optimizers = (rows, rest)
        self.param_groups: list[dict[str, Any]] = []
        super().__init__([group for optimizer in self.optimizers for group in optimizer.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict.get("optimizers", ())
        if len(states) != len(self.optimizers):
            raise ValueError(
                f"a state with {sorted(state_dict)} is not one of RowsAndRest, whose state has 'optimizers', of each "
                "one: resume with the optimizers that the checkpoint was made with"
            )
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        self.param_groups[:] = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def clip_rows(accelerator: Any) -> None:
    """Make an accelerator's `clip_grad_norm_` take row gradients; Trainer calls it in each step, clipping or not.

    torch's own, which accelerate calls, refuses sparse gradients. Only this instance changes.

    Args:
        accelerator: an `accelerate.Accelerator`, such as `trainer.accelerator`.

    Raises:
        ValueError: several processes. Row gradients of replicas have to be averaged first, which accelerate does not
            do: `fastft.trainer` does, or a loop of one's own with `fastft.optim.average_row_gradients`.
    """
    if accelerator.num_processes > 1:
        raise ValueError(
            f"{accelerator.num_processes} processes: row gradients of replicas have to be averaged, which accelerate "
            "does not do; use `fastft train`, or a plain torch.nn.Embedding"
        )

    def clip(parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        accelerator.unscale_gradients()
        return clip_grad_norm_(parameters, max_norm, norm_type)

    accelerator.clip_grad_norm_ = clip
