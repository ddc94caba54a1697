"""Random problems, drawn by hypothesis: both losses against fp64, whatever meets whatever."""

from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from tolerance import no_worse
from torch import Tensor

from fastft.losses import cross_entropy, linear_cross_entropy
from losses import eager
from losses.cases import REDUCTIONS, problem
from losses.test_linear_cross_entropy import HEAD_ROUNDINGS

ROUNDINGS = {dtype: 2 * roundings for dtype, roundings in HEAD_ROUNDINGS.items()}  # tiny problems have more luck
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
SIZES = {"n": st.integers(0, 12), "d": st.integers(1, 9), "v": st.integers(2, 70), "seed": st.integers(0, 2**16)}


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Names of options that are present, and the numbers among them; tensors are made to fit the problem."""
    reduction = draw(st.sampled_from(REDUCTIONS))
    given: dict[str, Any] = {"reduction": reduction}
    optional = {
        "label_smoothing": st.sampled_from([0.0, 0.1, 0.9, 1.0]),
        "softcap": st.sampled_from([None, 1.0, 30.0]),
        "logit_scale": st.sampled_from([1.0, 0.125, -2.0, 0.0]),
        "z_loss": st.sampled_from([0.0, 1e-4, 0.5]),
        "ignore_index": st.sampled_from([-100, -1, 0, 1]),
        "weight": st.booleans(),
        "token_weight": st.booleans(),
    }
    if reduction == "mean":
        optional["num_items"] = st.sampled_from([1, 7.5, 1000])
    for name in draw(st.sets(st.sampled_from(sorted(optional)))):
        given[name] = draw(optional[name])
    return given


def fitted(p: Any, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    given = dict(given)
    for name, length, low in (("weight", len(p.w), 0), ("token_weight", len(p.y), -2)):
        given[name] = p.eighths(length, low=low) if given.get(name) else None
    return p.y.masked_fill(p.y == -100, given.get("ignore_index", -100)), given


def largest_coefficient(y: Tensor, given: dict[str, Any]) -> float | None:
    """What the largest token's loss is multiplied by; None where the mean divides by weights that cancel."""
    keep = y != given.get("ignore_index", -100)
    w = torch.ones(len(y)).double() if given["token_weight"] is None else given["token_weight"].double()
    w = (w if given["weight"] is None else w * given["weight"].double()[y.clamp(0)])[keep]
    if not len(w) or w.abs().max() == 0:
        return 0.0
    total = float(w.sum()) if given.get("num_items") is None else given["num_items"]
    if given["reduction"] != "mean":
        total = 1.0
    elif given.get("num_items") is None and w.abs().sum() > 8 * abs(total):
        return None
    return float(w.abs().max()) / abs(total) * (1 + 20 * given.get("z_loss", 0.0))


def compare(
    ours: Any, plain: Any, tensors: list[Tensor], y: Tensor, given: dict[str, Any], how: dict[str, Any]
) -> None:
    dtype, coefficient = tensors[0].dtype, largest_coefficient(y, given)
    truth = eager.evaluate(plain, tensors, y, given, 1.0, torch.float64)
    if coefficient is None or not all(t.isfinite().all() for t in truth):
        return
    torchs = eager.evaluate(plain, tensors, y, given, 1.0, dtype)
    got = eager.evaluate(ours, tensors, y, {**given, **how})
    # By d of x w^T, which is large where its other factor is.
    factors = [1.0, *(float(t.abs().max()) if t.numel() else 0.0 for t in reversed(tensors)), 1.0]
    factors[1] = 1.0 if len(tensors) == 1 else factors[1]
    for name, g, t, f, factor in zip(("loss", "dx", "dw", "dbias"), got, torchs, truth, factors, strict=False):
        scale = coefficient * factor * (1.0 if name == "loss" else abs(given.get("logit_scale", 1.0)))
        no_worse(name, g, t, f, dtype, roundings=ROUNDINGS[dtype], scale=scale)


@settings(max_examples=150)
@given(dtype=DTYPES, share=st.sampled_from([0.0, 0.5, 0.9, 1.0]), given_options=options(), **SIZES)
def test_cross_entropy(
    dtype: torch.dtype, share: float, given_options: dict[str, Any], n: int, d: int, v: int, seed: int
) -> None:
    p = problem(n, d, v, dtype, share, seed=seed)
    y, given = fitted(p, given_options)
    compare(cross_entropy, eager.cross_entropy, [p.z], y, given, {})


@settings(max_examples=300)
@given(
    dtype=DTYPES, share=st.sampled_from([0.0, 0.5, 0.9, 1.0]), given_options=options(), bias=st.booleans(),
    rows=st.none() | st.integers(0, 12), with_valid=st.booleans(), **SIZES,
)  # fmt: skip
def test_linear_cross_entropy(
    dtype: torch.dtype, share: float, given_options: dict[str, Any], bias: bool, rows: int | None, with_valid: bool,
    n: int, d: int, v: int, seed: int,
) -> None:  # fmt: skip
    p = problem(n, d, v, dtype, share, seed=seed)
    y, given = fitted(p, given_options)
    given["linear_bias"] = p.eighths(v, low=-8).to(dtype) if bias else None
    how = {"memory_budget": None if rows is None else rows * v * p.x.element_size()}
    if with_valid:
        how["valid"] = (y != given.get("ignore_index", -100)).nonzero()[:, 0]
    compare(linear_cross_entropy, eager.linear_cross_entropy, [p.x, p.w], y, given, how)
