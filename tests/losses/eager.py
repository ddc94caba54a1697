"""The same losses as one writes them with torch alone: the truth in fp64, torch's own error at any other dtype."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TORCH_HAS = {"weight", "ignore_index", "reduction", "label_smoothing"}
CONSTANTS = {"weight", "token_weight", "num_items"}  # they take the dtype of the computation
SCHEDULE = {"memory_budget", "valid", "backend"}  # how, not what


def cross_entropy(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    """`fastft.losses.cross_entropy` of logits (N, V) and target (N,); torch's own where torch has the options."""
    options = {name: value for name, value in options.items() if name not in SCHEDULE}
    if options.keys() <= TORCH_HAS and (target != options.get("ignore_index", -100)).any():
        return F.cross_entropy(logits, target, **options)
    return defined(logits, target, **options)


def linear_cross_entropy(
    x: Tensor, w: Tensor, target: Tensor, *, linear_bias: Tensor | None = None, **options: Any
) -> Tensor:
    return cross_entropy(F.linear(x, w, linear_bias), target, **options)


def defined(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0, token_weight: Tensor | None = None, softcap: float | None = None,
    logit_scale: float = 1.0, z_loss: float = 0.0, num_items: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The loss by its definition, token by token, over the supervised rows."""
    keep = target != ignore_index
    if token_weight is not None:
        keep = keep & (token_weight != 0)
    z, y = logit_scale * logits[keep], target[keep]
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    w = torch.ones_like(z[:, 0]) if weight is None else weight[y]
    loss = F.cross_entropy(z, y, weight, reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        loss = loss + z_loss * w * z.logsumexp(-1).square()
    if token_weight is not None:
        loss, w = loss * token_weight[keep], w * token_weight[keep]
    if reduction == "none":
        return loss.new_zeros(len(target)).masked_scatter(keep, loss)
    if reduction == "sum" or not keep.any():
        return loss.sum()
    return loss.sum() / (w.sum() if num_items is None else num_items)


def evaluate(
    loss: Callable[..., Any], tensors: Sequence[Tensor], target: Tensor, options: dict[str, Any],
    upstream: float | Tensor = 1.0, dtype: torch.dtype | None = None,
) -> list[Tensor]:  # fmt: skip
    """Value of `loss(*tensors, target, **options)` and its gradients by `tensors` and "linear_bias", all in `dtype`."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and dtype is not None else value

    leaves = [cast(t.detach()).requires_grad_() for t in tensors]
    wanted = list(leaves)
    options = {name: cast(value) if name in CONSTANTS else value for name, value in options.items()}
    if options.get("linear_bias") is not None:
        options["linear_bias"] = cast(options["linear_bias"].detach()).requires_grad_()
        wanted.append(options["linear_bias"])
    value = loss(*leaves, target, **options)
    gradient = torch.as_tensor(upstream).to(value).expand(value.shape)
    return [value.detach(), *torch.autograd.grad(value, wanted, gradient)]
