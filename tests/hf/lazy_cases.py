"""The same calls on real and on lazy logits: which are to stay lazy, which are not, and how to compare them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastft.hf.lazy_logits import lazy_linear

B, S, D, V = 3, 5, 4, 7
Op = Callable[[Tensor], Tensor]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight, bias; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, S, D), (V, D), (V,))
    return tuple(torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)  # type: ignore


def both(op: Op, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
    """`op` of real and of lazy logits, each with its inputs."""
    return [(op(linear(*x)), x) for linear in (F.linear, lazy_linear) for x in [inputs(dtype)]]


def labels(shape: tuple[int, ...], classes: int = V) -> Tensor:
    y = torch.randint(classes, shape, generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(y.numel()).reshape(shape) % 3 == 1, -100, y)


def assert_same_gradients(losses: list[tuple[Tensor, tuple[Tensor, ...]]]) -> None:
    (want, x), (got, y) = losses
    torch.testing.assert_close(got, want)
    want.sum().backward()
    got.sum().backward()
    for a, b in zip(x, y, strict=True):
        torch.testing.assert_close(b.grad, a.grad)


EXTRA = torch.linspace(-1, 1, V, dtype=torch.float64)
MASK = torch.arange(B * S).reshape(B, S) % 4 == 1
FUSED: dict[str, Op] = {
    "as it is": lambda z: z,
    "scale": lambda z: z * 0.3,
    "scale from the left": lambda z: 2 * z,
    "torch.mul": lambda z: torch.mul(z, 3),
    "divide": lambda z: z / 8.0,
    "softcap": lambda z: torch.tanh(z / 3.0) * 3.0,
    "softcap and scale": lambda z: (z * 0.7 / 2.0).tanh() * 2.0 / 5.0,
    "softcap module": lambda z: torch.nn.Tanh()(z / 3.0) * 3.0,
    "bias": lambda z: z + EXTRA,
    "bias (1, V)": lambda z: z + EXTRA[None],
    "bias, then softcap": lambda z: torch.tanh((z + EXTRA) / 3.0) * 3.0,
    "cast": lambda z: z.float().double(),
    "to": lambda z: z.to(torch.float32).to(dtype=torch.float64).to("cpu"),
    "shift": lambda z: z[..., :-1, :].contiguous(),
    "shift without copy": lambda z: z[:, 1:],
    "one position": lambda z: z[:, -1, :],
    "one row": lambda z: z[1],
    "some positions": lambda z: z[:, torch.tensor([0, 3, 3])],
    "masked positions": lambda z: z[MASK],
    "vocabulary slice": lambda z: z[..., : V - 2],
    "vocabulary slice, then bias": lambda z: z[:, :, : V - 2] + EXTRA[: V - 2],
    "view": lambda z: z.view(-1, V),
    "view of four dimensions": lambda z: z.view(B, 1, S, V),
    "reshape of a slice": lambda z: z[:, 1:].reshape(-1, V),
    "nothing left": lambda z: z[:0],
}
MATERIALIZED: dict[str, Op] = {
    "bias after scale": lambda z: z * 2.0 + EXTRA,
    "bias after softcap": lambda z: torch.tanh(z) + EXTRA,
    "bias on the left": lambda z: EXTRA + z * 2.0,
    "bias per position": lambda z: z + torch.ones(S, 1, dtype=torch.float64),
    "number added": lambda z: z + 1.0,
    "tanh of tanh": lambda z: z.tanh().tanh(),
    "negative scale": lambda z: z * -1.0,
    "zero scale": lambda z: z * 0.0,
    "scale per class": lambda z: z * EXTRA,
    "division of a number": lambda z: 1.0 / z,
    "rounded division": lambda z: torch.div(z, 2.0, rounding_mode="floor"),
    "scaled addition": lambda z: torch.add(z, EXTRA, alpha=2),
    "transpose": lambda z: z.transpose(1, 2),
    "every second class": lambda z: z[..., ::2],
    "chosen classes": lambda z: z[..., torch.tensor([1, 2])],
    "new dimension": lambda z: z[:, None],
    "view across classes": lambda z: z.view(B, -1),
    "integers": lambda z: z.to(torch.int64).double(),
    "copy": lambda z: z.to(torch.float64, copy=True),
    "softmax": lambda z: z.softmax(-1),
    "cat": lambda z: torch.cat([z, z], dim=-1),
    "sum of two": lambda z: z + z,
    "in place": lambda z: z.mul_(2.0),
    "assignment": lambda z: z.index_fill(2, torch.tensor([1]), -5.0),
    "detach": lambda z: z.detach(),
}
