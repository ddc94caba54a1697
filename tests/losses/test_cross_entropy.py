"""fastft.losses.cross_entropy against fp64, and against torch's own error at the same dtype."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerance import no_worse
from torch import Tensor

from fastft.kernels.cpu import memory
from fastft.losses import cross_entropy
from losses import eager
from losses.cases import DTYPES, MEAN_OPTIONS, OPTIONS, REDUCTIONS, SHARES, problem, with_ignored

LOW = (torch.float32, torch.bfloat16, torch.float16)


def check(
    z: Tensor, y: Tensor, options: dict[str, Any], backend: str, upstream: float | Tensor = 1.0, what: str = "",
    **tolerance: Any,
) -> None:  # fmt: skip
    """Loss and gradient of fastft, torch in the same dtype, and fp64."""
    truth = eager.evaluate(eager.cross_entropy, [z], y, options, upstream, torch.float64)
    torchs = eager.evaluate(eager.cross_entropy, [z], y, options, upstream, z.dtype)
    got = eager.evaluate(cross_entropy, [z], y, {**options, "backend": backend}, upstream)
    assert got[0].dtype == torch.promote_types(z.dtype, torch.float32)
    assert got[1].dtype == z.dtype
    for name, g, t, f in zip(("loss", "dlogits"), got, torchs, truth, strict=True):
        no_worse(f"{what} {name}", g, t, f, g.dtype, **tolerance)


@pytest.mark.parametrize("option", [*OPTIONS, *MEAN_OPTIONS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_worse_than_torch(option: str, dtype: torch.dtype, backend: str, takes: Callable[..., None]) -> None:
    takes(dtype)
    for share in SHARES:
        for reduction in REDUCTIONS if option in OPTIONS else ("mean",):
            p = problem(24, 1, 37, dtype, share)
            options = {**(OPTIONS | MEAN_OPTIONS)[option](p), "reduction": reduction}
            check(p.z, with_ignored(p.y, options), options, backend, what=f"{share:.0%} ignored, {reduction}:")


@pytest.mark.parametrize(
    "option", ["plain", "label_smoothing", "negative_scale", "softcap", "scale_and_softcap", "z_loss"]
)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_no_worse_than_torch_over_many_values(
    option: str, dtype: torch.dtype, backend: str, takes: Callable[..., None]
) -> None:
    takes(dtype)
    p = problem(512, 1, 777, dtype)
    options = {**OPTIONS[option](p), "reduction": "none"}
    check(p.z, p.y, options, backend, roundings=0, norms=(2.0,))


@pytest.mark.parametrize(
    "shape", [(0, 7), (1, 1), (3, 1), (1, 2), (5, 7), (9, 2047), (2, 4099), (3, 50257), (2, 262144)], ids=str
)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_sizes(shape: tuple[int, int], dtype: torch.dtype, backend: str, takes: Callable[..., None]) -> None:
    takes(dtype)
    p = problem(shape[0], 1, shape[1], dtype)
    for name in ("plain", "label_smoothing", "everything"):
        options = OPTIONS[name](p)
        y = p.y.clone()
        if len(y) > 1:
            y[1] = options.get("ignore_index", -100)
        check(p.z, y, options, backend, what=name, scale=1.0 if shape[1] == 1 else 0.0)


@pytest.mark.parametrize("position", ["first", "last", "block"])
def test_target_position(position: str, backend: str) -> None:
    """The kernel treats the target apart: at either end of the row there is nothing on one side."""
    p = problem(6, 1, 4097)
    y = torch.full_like(p.y, {"first": 0, "last": 4096, "block": 2048}[position])
    check(p.z, y, {}, backend)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "every_other_row": lambda z: z.repeat_interleave(2, 0)[::2],
    "columns_of_a_wider": lambda z: torch.cat([z, z], 1)[:, : z.shape[1]],
    "transposed": lambda z: z.t().contiguous().t(),
    "every_other_column": lambda z: z.repeat_interleave(2, 1)[:, ::2],
    "one_row_expanded": lambda z: z[:1].expand(len(z), -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_not_contiguous(layout: str, dtype: torch.dtype, backend: str, takes: Callable[..., None]) -> None:
    takes(dtype)
    p = problem(16, 1, 37, dtype, 0.5)
    whole = p.eighths(2 * 37, low=1)
    options = {"weight": whole[::2], "token_weight": p.eighths(32)[::2], "label_smoothing": 0.1}
    z = LAYOUTS[layout](p.z)
    y = torch.stack([p.y, p.y], 1)[:, 0]
    before = z.clone()
    value, (dz,) = value_and_gradient(z, lambda z: cross_entropy(z, y, **options, backend=backend))
    expected, (dexpected,) = value_and_gradient(
        z.contiguous(), lambda z: cross_entropy(z, y.contiguous(), **options, backend=backend)
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(dz, dexpected)
    assert torch.equal(z, before), "the logits were written to"


def value_and_gradient(z: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    z = z.detach().requires_grad_()
    value = loss(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)


@pytest.mark.parametrize(
    ("shape", "target_shape"),
    [
        ((5,), ()),
        ((6, 5), (6,)),
        ((2, 3, 5), (2, 3)),
        ((2, 3, 4, 5), (2, 3, 4)),
        ((2, 5, 3), (2, 3)),
        ((2, 5, 3, 4), (2, 3, 4)),
        ((3, 3, 3), (3, 3)),  # both fit: torch's form goes first
        ((0, 5), (0,)),
        ((2, 5, 0), (2, 0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_shapes(shape: tuple[int, ...], target_shape: tuple[int, ...], reduction: str, backend: str) -> None:
    torch.manual_seed(0)
    z = torch.randn(shape, dtype=torch.float32)
    torchs_form = len(shape) > 1 and (shape[0], *shape[2:]) == target_shape
    classes = shape[1] if torchs_form else shape[-1]
    y = torch.randint(classes, target_shape)
    moved = z if torchs_form or len(shape) == 1 else z.movedim(-1, 1)
    got, (dz,) = value_and_gradient(z, lambda z: cross_entropy(z, y, reduction=reduction, backend=backend))
    if not y.numel():
        assert got.shape == (target_shape if reduction == "none" else ())
        assert got.sum() == 0
        assert dz.shape == z.shape
        return
    expected, (dmoved,) = value_and_gradient(moved.double(), lambda z: F.cross_entropy(z, y, reduction=reduction))
    torch.testing.assert_close(got, expected.float())
    torch.testing.assert_close(dz, (dmoved if moved is z else dmoved.movedim(1, -1)).float())


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("upstream", [0.0, 1.0, -3.0, 65536.0])
def test_upstream_scalar(upstream: float, dtype: torch.dtype, backend: str, takes: Callable[..., None]) -> None:
    takes(dtype)
    p = problem(16, 1, 37, dtype, 0.5)
    check(p.z, p.y, {}, backend, upstream, roundings=2 if dtype != torch.float32 else None)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_upstream_vector(dtype: torch.dtype, backend: str, takes: Callable[..., None]) -> None:
    takes(dtype)
    p = problem(16, 1, 37, dtype, 0.5)
    check(p.z, p.y, {"reduction": "none", "label_smoothing": 0.1}, backend, p.eighths(16, low=-20, high=20))


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("option", ["plain", "weight_and_smoothing", "token_weight", "softcap", "everything"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_stay_out(junk: float, option: str, reduction: str, backend: str) -> None:
    p = problem(16, 1, 37, share=0.5)
    options = {**OPTIONS[option](p), "reduction": reduction, "backend": backend}
    y = with_ignored(p.y, options)
    ignored = y == options.get("ignore_index", -100)
    if "token_weight" in options:
        ignored |= options["token_weight"] == 0
    results = []
    for z in (p.z, p.z.masked_fill(ignored[:, None], junk)):
        results.append(eager.evaluate(cross_entropy, [z], y, options))
        assert (results[-1][1][ignored] == 0).all()
    for clean, dirty in zip(*results, strict=True):
        assert dirty.isfinite().all()
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("why", ["targets", "token_weight", "class_weight", "empty"])
def test_nothing_supervised_is_a_differentiable_zero(reduction: str, why: str, backend: str) -> None:
    p = problem(0 if why == "empty" else 5, 1, 7)
    z, y, options = p.z.requires_grad_(), p.y.clone(), {}
    if why == "targets":
        y[:] = -100
        z.data[:] = torch.nan
    elif why == "token_weight":
        options["token_weight"] = torch.zeros(5)
        z.data[:] = torch.nan
    elif why == "class_weight":
        options["weight"] = torch.zeros(7)
    loss = cross_entropy(z, y, reduction=reduction, backend=backend, **options)
    assert torch.equal(loss, torch.zeros(y.shape if reduction == "none" else ()))
    loss.sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_vocabulary(dtype: torch.dtype, reduction: str, backend: str, takes: Callable[..., None]) -> None:
    """-inf logits of classes that cannot be chosen, whole blocks of them and up to all but the target."""
    takes(dtype)
    p = problem(12, 1, 5000, dtype)
    z = p.z.clone()
    classes = torch.arange(5000)
    z[:4, ::2] = -torch.inf
    z[4:8, :4100] = -torch.inf
    z[8:10] = -torch.inf
    z[10:].masked_fill_(classes != p.y[10:, None], -torch.inf)
    z[classes == p.y[:, None]] = 1.0
    check(z, p.y, {"reduction": reduction}, backend)
    check(z, p.y, {"reduction": reduction, "z_loss": 1e-2, "logit_scale": 0.5}, backend)


def test_masked_target_is_infinite(backend: str) -> None:
    """A target whose logit is -inf has an infinite loss, as in torch, and no NaN beside it."""
    z = torch.tensor([[0.0, -torch.inf, 1.0], [0.0, 1.0, 2.0]])
    loss = cross_entropy(z, torch.tensor([1, 1]), reduction="none", backend=backend)
    assert loss[0] == torch.inf
    assert loss[1].isfinite()


def test_nan_in_a_supervised_row_shows(backend: str) -> None:
    p = problem(4, 1, 37)
    for column in (int(p.y[2]), int(p.y[2]) - 1, 36):
        z = p.z.clone()
        z[2, column] = torch.nan
        loss, dz = eager.evaluate(cross_entropy, [z], p.y, {"reduction": "none", "backend": backend})
        assert loss.isnan().tolist() == [False, False, True, False]
        assert dz.isnan().any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("spread", [10.0, 30.0, 80.0])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_sharp_logits(spread: float, dtype: torch.dtype, backend: str, takes: Callable[..., None]) -> None:
    takes(dtype)
    p = problem(32, 1, 101, dtype, spread=spread)
    for reduction in REDUCTIONS:
        check(p.z, p.y, {"reduction": reduction}, backend, what=reduction)


@pytest.mark.parametrize("margin", [5.0, 14.0, 30.0, 80.0])
def test_certain_prediction_keeps_its_small_loss(margin: float, backend: str) -> None:
    """nll and 1 - p of 1e-6 and far below, to fp32's relative precision; torch itself gives 0 or one digit."""
    if backend == "reference":
        pytest.skip("reference: log_softmax has torch's own cancellation; in fp64 it is the truth")
    p = problem(16, 1, 50)
    z = p.z.clamp(-3, 3).scatter(1, p.y[:, None], margin)
    loss, dz = eager.evaluate(cross_entropy, [z], p.y, {"reduction": "none", "backend": backend})
    others = z.double().scatter(1, p.y[:, None], -torch.inf)
    odds = (others.logsumexp(1) - z.double().gather(1, p.y[:, None])[:, 0]).exp()
    torch.testing.assert_close(loss.double(), odds.log1p(), rtol=2e-6, atol=0)
    at_target = dz.gather(1, p.y[:, None])[:, 0].double()
    torch.testing.assert_close(at_target, -odds / (1 + odds), rtol=2e-6, atol=0)
    rest = others.softmax(1) * (odds / (1 + odds))[:, None]
    torch.testing.assert_close(dz.double().scatter(1, p.y[:, None], 0), rest, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"softcap": 3.0, "logit_scale": 0.5}], ids=str)
def test_class_probabilities_are_torchs_own(reduction: str, options: dict[str, float], backend: str) -> None:
    p = problem(6, 1, 7)
    target = p.z.softmax(1)
    transform = {"softcap", "logit_scale"} & options.keys()
    z = 3 * torch.tanh(0.5 * p.z / 3) if transform else p.z
    weight = p.eighths(7)
    rest = {name: value for name, value in options.items() if name not in transform}
    expected = F.cross_entropy(z, target, weight, reduction=reduction, **rest)
    got = cross_entropy(p.z, target, weight, reduction=reduction, backend=backend, **options)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_gradients_in_zeros_of_the_system(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, exactly 0 where ignored, memory that can be written and outlives the call."""
    torch.manual_seed(0)
    z = torch.randn(360, 50_000).to(dtype).requires_grad_()
    y = torch.randint(0, 50_000, (360,)).masked_fill(torch.rand(360) < 0.85, -100)
    with torch.no_grad():
        z[y == -100] = torch.nan
    assert z.nbytes > memory.FRESH
    given: list[Tensor | None] = []
    monkeypatch.setattr(memory, "zeros", lambda *args, zeros=memory.zeros: given.append(zeros(*args)) or given[-1])
    grads = [torch.autograd.grad(cross_entropy(z, y, backend="cpu"), z)[0] for _ in range(2)]
    assert all(isinstance(buffer, Tensor) for buffer in given)
    assert len(given) == 2
    monkeypatch.setattr(memory, "zeros", lambda shape, dtype: torch.full(shape, 7, dtype=dtype))
    (marked,) = torch.autograd.grad(cross_entropy(z, y, backend="cpu"), z)
    assert (marked[y == -100] == 7).all(), "zeros were written where there are zeros"
    monkeypatch.undo()
    monkeypatch.setattr(memory, "FRESH", z.nbytes + 1)
    (plain,) = torch.autograd.grad(cross_entropy(z, y, backend="cpu"), z)
    for grad in grads:
        assert torch.equal(grad, plain)
        assert (grad[y == -100] == 0).all()
        grad.add_(1)
        assert grad.isfinite().all()
