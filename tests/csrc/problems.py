"""Rows of logits for the CUDA kernels with every mix of coefficients, and what the reference makes of them."""

from typing import NamedTuple

import torch
from tolerance import no_worse
from torch import Tensor

from fastft.kernels.reference import cross_entropy as reference

STATISTICS = ("nll", "lse", "q.z", "entropy", "correct")
# label, smooth, lse_square: plain, smoothed, z-loss, both, a negative weight, smoothing only
COEFFICIENTS = ((1.0, 0.0, 0.0), (0.9, 0.1, 0.0), (1.0, 0.0, 1e-2), (0.7, 0.3, 1e-3), (-0.5, 0.1, 0.0), (0.0, 1.0, 0.0))
IGNORED = (2, 7)
ROWS = len(COEFFICIENTS) + len(IGNORED)


class Problem(NamedTuple):
    logits: Tensor  # (M, V)
    target: Tensor  # (M,)
    coefficients: Tensor  # (M, 3)
    q: Tensor | None  # (V,)
    scale: float
    softcap: float

    def rows(self, count: int) -> "Problem":
        return self._replace(
            logits=self.logits[:count], target=self.target[:count], coefficients=self.coefficients[:count]
        )


def problem(
    vocab: int, dtype: torch.dtype, *, has_q: bool = False, scale: float = 1.0, softcap: float = 0.0
) -> Problem:
    """NaN in ignored rows; targets at both ends of the row and within it."""
    g = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(ROWS, vocab, generator=g) * 3).to(dtype)
    target = torch.randint(vocab, (ROWS,), generator=g)
    target[0], target[1] = 0, vocab - 1
    coefficients = torch.full((ROWS, 3), torch.nan)
    coefficients[[i for i in range(ROWS) if i not in IGNORED]] = torch.tensor(COEFFICIENTS)
    for i in IGNORED:
        target[i], logits[i] = -1, torch.nan
    q = torch.rand(vocab, generator=g) if has_q else None
    return Problem(logits, target, coefficients, None if q is None else q / q.sum(), scale, softcap)


def crafted(rows: list[list[float]], target: list[int]) -> Problem:
    return Problem(
        torch.tensor(rows), torch.tensor(target), torch.tensor([COEFFICIENTS[0]] * len(rows)), None, 1.0, 0.0
    )


def evaluated(p: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(stats, gradient) of the reference, `dtype` being that of the logits and the gradient."""
    grad = torch.full(p.logits.shape, torch.nan, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    q = None if p.q is None else p.q.to(wide)
    stats = reference.cross_entropy(p.logits.to(dtype), p.target, p.coefficients.to(wide), q, p.scale, p.softcap, grad)
    return stats, grad


def check(what: str, p: Problem, stats: Tensor, grad: Tensor) -> None:
    """Neither is further from fp64 than the reference in the dtype of the logits."""
    dtype, vocab = p.logits.dtype, p.logits.shape[1]
    (own, own_grad), (truth, true_grad) = evaluated(p, dtype), evaluated(p, torch.float64)
    size = float(truth[1].abs().max())  # q.z and entropy are sums that cancel
    for k, name in enumerate(STATISTICS):
        no_worse(f"{name}, {what}", stats[k], own[k], truth[k], torch.float32, scale=0.0 if name == "correct" else size)
    no_worse(f"gradient, {what}", grad, own_grad, true_grad, dtype, scale=4.0 if vocab == 1 else 0.0)
