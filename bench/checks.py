"""No number without a right answer: how a provider's output is judged before it is timed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Largest distance from eager's gradients at full size. It catches a wrong schedule (a chunk lost, counted twice or
# scaled wrongly); rounding is judged against fp64 at the reduced size.
DEVIATION = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def relative_errors(got: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """`|got - truth| / |truth|` of each output, in the Frobenius norm."""
    return {name: ((got[name].double() - truth[name]).norm() / truth[name].norm()).item() for name in truth}


def refusal(
    own: Mapping[str, float], eager: Mapping[str, float], dtype: torch.dtype, name_of_eager: str = "eager"
) -> str | None:
    """Why a provider gets no row: an error above twice eager's own at this dtype. The loss, one number that eager may
    hit by luck, is allowed its rounding to this dtype more, or four roundings of fp32."""
    rounding = max(torch.finfo(dtype).eps, 4 * torch.finfo(torch.float32).eps)
    for name, error in own.items():
        bound = 2 * eager[name] + (rounding if name == "loss" else 0.0)
        if not error <= bound:
            return f"its error of {name} against fp64 is {error:.2e}; {name_of_eager}'s own is {eager[name]:.2e}"
    return None


def deviation(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative distance of a tensor from the expected one, NaN if any is NaN; in slices of rows, so
    that it takes little memory."""
    distances = []
    for one, other in zip(got, expected, strict=True):
        apart = total = 0.0
        for a, b in zip(one.split(8192), other.split(8192), strict=True):
            apart += (a.float() - b.float()).square().sum().item()
            total += b.float().square().sum().item()
        distances.append((apart / total) ** 0.5)
    return torch.tensor(distances, dtype=torch.float64).max().item()
