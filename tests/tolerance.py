"""What counts as right: no further from the fp64 truth than torch itself is at the same dtype."""

import torch
from torch import Tensor

FACTOR = {2.0: 1.25, torch.inf: 1.5}  # by norm: two orders of the same sum differ by this much
# Halves are computed in fp32 and rounded once; fp32 takes an exponential, a sum, a quotient,
# products, and under a softcap a tanh and its slope, each rounded; in fp64 the truth is rounded too.
ROUNDINGS = {torch.float16: 1, torch.bfloat16: 1, torch.float32: 6, torch.float64: 8}


def no_worse(
    name: str, got: Tensor, torchs: Tensor, truth: Tensor, dtype: torch.dtype, *, roundings: float | None = None,
    scale: float = 0.0, norms: tuple[float, ...] = (2.0, torch.inf),
) -> None:  # fmt: skip
    """Assert `|got - truth| <= max(FACTOR |torchs - truth|, roundings u |truth|)`, u the unit roundoff of `dtype`.

    Checked in the Frobenius norm, which sees everything at once, and in the maximum norm, which sees one wrong element.
    The second bound is for the luck of the draw: where torch's own error happens to be 0 (a sum that comes out exact, a
    single number), a result that was rounded `roundings` times is right too. Over thousands of values luck evens out:
    then `roundings=0`, with the Frobenius norm alone.

    `scale` is the size of terms that cancel in the truth; it takes the place of a smaller `|truth|`.
    """
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    if not truth.numel():
        return
    on_gpu = got.is_cuda
    overflowed = truth.double() * (1 + torch.finfo(torchs.dtype).eps / 2)  # what torch would do with more range
    got, torchs, truth = (t.detach().double().cpu() for t in (got, torchs.where(torchs.isfinite(), overflowed), truth))
    finite = truth.isfinite()
    agree = finite | (got == truth) | (got.isnan() & truth.isnan())
    assert agree.all(), f"{name}: {got[~agree][0]} where the truth is {truth[~agree][0]}"
    got, torchs, truth = got[finite], torchs[finite], truth[finite]
    assert got.isfinite().all(), f"{name}: {int((~got.isfinite()).sum())} of {got.numel()} values are not finite"
    unit = torch.finfo(dtype).eps / 2
    roundings = ROUNDINGS[dtype] if roundings is None else roundings
    if on_gpu and dtype == torch.float32:
        roundings *= 2  # exponential, root and quotient are approximations there, of two roundings
    for norm in norms:
        error, own, size = (float(torch.linalg.vector_norm(t, norm)) for t in (got - truth, torchs - truth, truth))
        size = max(size, scale)
        assert error <= max(FACTOR[norm] * own, roundings * unit * size), (
            f"{name}: error {error:.3g} in the {norm:g}-norm, torch's own {own:.3g}, |truth| {size:.3g}, roundoff "
            f"{unit:.3g}: {error / (unit * size or 1):.3g} roundings, torch's own {own / (unit * size or 1):.3g}"
        )
