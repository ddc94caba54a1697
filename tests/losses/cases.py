"""Random problems and the options that the losses are tested with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")
SHARES = (0.0, 0.5, 0.95, 1.0)  # of ignored positions


class Problem(NamedTuple):
    x: Tensor  # (N, D)
    w: Tensor  # (V, D)
    y: Tensor  # (N,)
    z: Tensor  # (N, V), logits of the same size as x w^T, not equal to it
    generator: torch.Generator

    def eighths(self, *shape: int, low: int = 0, high: int = 16) -> Tensor:
        """Random multiples of 1/8, low included, high not: exact in every dtype."""
        return random(torch.randint, low, high, shape, generator=self.generator) / 8


def problem(
    n: int, d: int, v: int, dtype: torch.dtype = torch.float32, share: float = 0.0, *, seed: int = 0,
    spread: float = 3.0,
) -> Problem:  # fmt: skip
    """Hidden states, head, logits and targets; `share` of the targets is -100, logits have deviation `spread`."""
    g = torch.Generator().manual_seed(seed)
    x = random(torch.randn, n, d, generator=g).to(dtype)
    w = (random(torch.randn, v, d, generator=g) * (spread / max(d, 1) ** 0.5)).to(dtype)
    z = (random(torch.randn, n, v, generator=g) * spread).to(dtype)
    y = random(torch.randint, v, (n,), generator=g)
    y[random(torch.randperm, n, generator=g)[: round(share * n)]] = -100
    return Problem(x, w, y, z, g)


def random(draw: Callable[..., Tensor], *args: Any, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that every device gets the same numbers."""
    return draw(*args, generator=generator, device="cpu").to(torch.get_default_device())


OPTIONS: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "plain": lambda p: {},
    "weight": lambda p: {"weight": p.eighths(len(p.w), low=1)},
    "weight_with_zeros": lambda p: {"weight": p.eighths(len(p.w), high=3)},
    "label_smoothing": lambda p: {"label_smoothing": 0.1},
    "label_smoothing_1": lambda p: {"label_smoothing": 1.0},
    "weight_and_smoothing": lambda p: {"weight": p.eighths(len(p.w)), "label_smoothing": 0.25},
    "softcap": lambda p: {"softcap": 5.0},
    "logit_scale": lambda p: {"logit_scale": 0.0625},
    "negative_scale": lambda p: {"logit_scale": -1.5},
    "scale_and_softcap": lambda p: {"logit_scale": 2.0, "softcap": 4.0},
    "z_loss": lambda p: {"z_loss": 1e-2},
    "token_weight": lambda p: {"token_weight": p.eighths(len(p.y), high=4)},
    "negative_token_weight": lambda p: {"token_weight": p.eighths(len(p.y), low=-3, high=20)},
    "ignore_index": lambda p: {"ignore_index": -1},
    "ignore_index_is_a_class": lambda p: {"ignore_index": 3},
    "everything": lambda p: {
        "weight": p.eighths(len(p.w), low=1), "token_weight": p.eighths(len(p.y)), "label_smoothing": 0.1,
        "softcap": 6.0, "logit_scale": 1.5, "z_loss": 1e-3, "ignore_index": 0,
    },
}  # fmt: skip
MEAN_OPTIONS: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "num_items": lambda p: {"num_items": 40},
    "num_items_tensor": lambda p: {"num_items": torch.tensor(40)},
    "num_items_and_weights": lambda p: {"num_items": 12.5, "token_weight": p.eighths(len(p.y))},
}
HEAD_OPTIONS: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "bias": lambda p: {"linear_bias": p.eighths(len(p.w), low=-8).to(p.x.dtype)},
    "chunks": lambda p: {"memory_budget": 5 * len(p.w) * p.x.element_size()},
    "chunk_of_one_row": lambda p: {"memory_budget": 1},
    "bias_and_chunks": lambda p: {**HEAD_OPTIONS["bias"](p), **HEAD_OPTIONS["chunks"](p)},
    "everything_in_chunks": lambda p: {**OPTIONS["everything"](p), **HEAD_OPTIONS["bias_and_chunks"](p)},
}


def with_ignored(target: Tensor, options: dict[str, Any]) -> Tensor:
    """The target with -100 replaced by the options' `ignore_index`."""
    return target.masked_fill(target == -100, options.get("ignore_index", -100))
