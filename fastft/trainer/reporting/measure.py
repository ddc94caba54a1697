"""What the head costs with and without the fused loss."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastft.data import Batch
from fastft.data.attention import forward
from fastft.losses import linear_cross_entropy
from fastft.memory import memory_now, peak_memory, reset_peak_memory


@dataclass(frozen=True)
class Cost:
    """seconds: the fastest of the runs. bytes: memory beyond what was in use before, gradients included; None where
    memory ran out, and then `seconds` is None too."""

    seconds: float | None
    bytes: int | None


@dataclass(frozen=True)
class HeadCost:
    """Head and loss, forward and backward, on one batch: `fused` as trained with patch, `unfused` as models do it."""

    positions: int
    supervised: int
    vocab: int
    fused: Cost
    unfused: Cost


def head_cost(model: Any, batch: Batch, autocast: AbstractContextManager[Any], repeats: int = 2) -> HeadCost:
    """Measure the head on what one batch learns at its first output. Parameters get no gradient.

    `unfused` is the usual course: logits at every position, a copy in fp32, cross-entropy that ignores -100.
    """
    head = model.get_output_embeddings()
    caught: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, args: caught.append(args[0].detach()))
    try:
        with torch.no_grad(), autocast:
            forward(model, batch)
    finally:
        handle.remove()
    hidden, labels = caught[0].flatten(0, 1), batch.targets[0].labels.flatten()  # (N, D), (N,)
    weight, bias = head.weight.detach(), getattr(head, "bias", None)
    bias = None if bias is None else bias.detach()

    def fused(x: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, labels, linear_bias=bias)

    def unfused(x: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, w, bias).float(), labels)

    return HeadCost(
        positions=labels.numel(),
        supervised=int((labels >= 0).sum()),
        vocab=weight.shape[0],
        fused=_cost(fused, hidden, weight, autocast, repeats),
        unfused=_cost(unfused, hidden, weight, autocast, repeats),
    )


def _cost(
    loss: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    weight: Tensor,
    autocast: AbstractContextManager[Any],
    repeats: int,
) -> Cost:
    """One run to warm up, then the fastest of `repeats`; the memory is the warm run's."""
    times = []
    try:
        before = memory_now(hidden.device)
        reset_peak_memory(hidden.device)
        for _ in range(1 + repeats):
            x, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            started = _clock(hidden.device)
            with autocast:
                value = loss(x, w)
            value.backward()  # type: ignore[no-untyped-call]
            times.append(_clock(hidden.device) - started)
            if len(times) == 1:
                used = peak_memory(hidden.device) - before
    except (torch.OutOfMemoryError, MemoryError):
        return Cost(None, None)
    return Cost(min(times[1:]), max(0, used))


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
