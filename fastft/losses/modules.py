"""nn.Module twins of the functions: options in the constructor, tensors in `forward`."""

from typing import Any

import torch
from torch import Tensor, nn

from fastft.losses.cross_entropy import cross_entropy
from fastft.losses.linear_cross_entropy import linear_cross_entropy


class CrossEntropyLoss(nn.Module):
    """`fastft.losses.cross_entropy` with fixed options; `torch.nn.CrossEntropyLoss`'s place and more.

    Args:
        weight: `(V,)` class weights, a buffer.
        options: keywords of `cross_entropy` that are not tensors: ignore_index, reduction, label_smoothing,
            softcap, logit_scale, z_loss, return_stats, backend.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.options = checked(options)

    def forward(self, input: Tensor, target: Tensor, **tensors: Any) -> Any:
        """`tensors`: token_weight, num_items."""
        return cross_entropy(input, target, self.weight, **self.options, **tensors)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class LinearCrossEntropyLoss(nn.Module):
    """A head and its loss: `linear_cross_entropy(input, self.linear.weight, target)`.

    Args:
        in_features: D.
        num_classes: V.
        bias: whether the head has a bias.
        weight: `(V,)` class weights, a buffer.
        options: keywords of `linear_cross_entropy` that are not tensors: those of `CrossEntropyLoss` and
            memory_budget.

    `self.linear` is an `nn.Linear(in_features, num_classes, bias)`.
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = False,
        *,
        weight: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes, bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.options = checked(options, "memory_budget")

    def forward(self, input: Tensor, target: Tensor, **tensors: Any) -> Any:
        """`tensors`: token_weight, num_items, valid."""
        head, bias = self.linear.weight, self.linear.bias
        return linear_cross_entropy(
            input, head, target, linear_bias=bias, weight=self.weight, **self.options, **tensors
        )

    extra_repr = CrossEntropyLoss.extra_repr


OPTIONS = {
    "ignore_index",
    "reduction",
    "label_smoothing",
    "softcap",
    "logit_scale",
    "z_loss",
    "return_stats",
    "backend",
}


def checked(options: dict[str, Any], *more: str) -> dict[str, Any]:
    unknown = sorted(set(options) - {*OPTIONS, *more})
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; expected {', '.join(sorted({*OPTIONS, *more}))}")
    return options
