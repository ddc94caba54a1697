"""A head whose classes are spread over 2 and 4 processes gives what the whole head gives, forward and backward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_on
from tolerance import no_worse
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fastft.losses import LossStats, linear_cross_entropy
from losses import eager
from losses.cases import DTYPES, HEAD_OPTIONS, MEAN_OPTIONS, OPTIONS, REDUCTIONS, Problem, problem, with_ignored
from losses.test_linear_cross_entropy import HEAD_ROUNDINGS, OUTPUTS

CLASSES = 40
ROUNDINGS = {dtype: 2 * HEAD_ROUNDINGS[dtype] for dtype in DTYPES}
ROUNDINGS[torch.float64] = 50  # there the truth is rounded too
ALL_OPTIONS = OPTIONS | HEAD_OPTIONS | MEAN_OPTIONS


def mine(t: Tensor, rank: int, n: int) -> Tensor:
    """This rank's rows."""
    return t.chunk(n)[rank]


def spread(p: Problem, options: dict[str, Any], rank: int, n: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Hidden states and this rank's part of the head."""
    bias = options.get("linear_bias")
    here = {} if bias is None else {"linear_bias": mine(bias, rank, n)}
    return [p.x, mine(p.w, rank, n)], {**options, **here, "tp_group": dist.group.WORLD}


def check(rank: int, n: int, p: Problem, options: dict[str, Any], backend: str, what: str) -> None:
    y = with_ignored(p.y, options)
    upstream = p.eighths(len(y), low=-8) if options["reduction"] == "none" else -2.5
    truth = eager.evaluate(eager.linear_cross_entropy, [p.x, p.w], y, options, upstream, torch.float64)
    torchs = eager.evaluate(eager.linear_cross_entropy, [p.x, p.w], y, options, upstream, p.x.dtype)
    heads, here = spread(p, {**options, "backend": backend}, rank, n)
    got = eager.evaluate(linear_cross_entropy, heads, y, here, upstream)
    for name, g, t, f in zip(OUTPUTS, got, torchs, truth, strict=False):
        if name in ("dw", "dbias"):
            t, f = mine(t, rank, n), mine(f, rank, n)
        assert g.dtype == t.dtype or name == "loss"
        # A rank's part of dx is rounded before the sum, so where parts cancel the error is that of larger numbers.
        scale = float(f.abs().max()) * n**0.5 if name == "dx" else 0.0
        no_worse(f"{what} {name}", g, t, f, p.x.dtype, roundings=ROUNDINGS[p.x.dtype], scale=scale)


def every_option(rank: int, n: int, backend: str, dtype: torch.dtype) -> None:
    for option, of in ALL_OPTIONS.items():
        for share in (0.0, 0.5, 1.0):
            for reduction in ("mean",) if option in MEAN_OPTIONS else REDUCTIONS:
                p = problem(24, 19, CLASSES, dtype, share)
                options = {**of(p), "reduction": reduction}
                check(rank, n, p, options, backend, f"rank {rank}, {option}, {share:.0%}, {reduction}:")


@pytest.mark.parametrize(("n", "dtype"), [*((2, dtype) for dtype in DTYPES), (4, torch.float32)], ids=str)
def test_every_option(n: int, dtype: torch.dtype) -> None:
    run_on(n, every_option, "reference" if dtype == torch.float64 else "cpu", dtype)


def statistics(rank: int, n: int, backend: str) -> None:
    p = problem(50, 8, CLASSES, share=0.3)
    p.x[:10] = torch.round(p.x[:10])
    p.w.copy_(torch.round(p.w))  # equal logits in several places
    z = p.x @ p.w.t()
    p.y[::4], p.y[1::4] = z[::4].argmax(1), z[1::4].argmin(1)
    for options in ({}, {"logit_scale": -1.0}, {"softcap": 3.0, "weight": p.eighths(CLASSES), "label_smoothing": 0.1}):
        options = {**options, "backend": backend, "return_stats": True}
        whole: LossStats = linear_cross_entropy(p.x, p.w, p.y, **options)[1]
        heads, here = spread(p, options, rank, n)
        parts: LossStats = linear_cross_entropy(*heads, p.y, **here)[1]
        assert whole.correct.any()
        assert torch.equal(parts.correct, whole.correct)
        for name in ("nll", "lse", "entropy"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-6)


def sure_predictions(rank: int, n: int, backend: str) -> None:
    """The loss and the target's gradient of a certain prediction are small numbers, not 0."""
    w = torch.eye(CLASSES)
    x = torch.zeros(3, CLASSES)
    y = torch.tensor([1, CLASSES // 2 + 1, CLASSES - 1])
    x[range(3), y] = torch.tensor([10.0, 13.0, 17.0])
    p = Problem(x, w, y, x, torch.Generator())
    heads, here = spread(p, {"backend": backend, "reduction": "none"}, rank, n)
    for got, truth in zip(
        eager.evaluate(linear_cross_entropy, heads, y, here),
        eager.evaluate(eager.linear_cross_entropy, [x, w], y, {"reduction": "none"}, dtype=torch.float64),
        strict=True,
    ):
        truth = mine(truth, rank, n) if truth.shape == w.shape else truth
        torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=0)


def ignored_rows(rank: int, n: int, backend: str) -> None:
    p = problem(24, 19, CLASSES, share=0.5)
    clean, dirty = (x.requires_grad_() for x in (p.x.clone(), p.x.clone()))
    with torch.no_grad():
        dirty[p.y == -100] = torch.nan
    for x in (clean, dirty):
        heads, here = spread(p, {"backend": backend, "memory_budget": 700}, rank, n)
        linear_cross_entropy(x, heads[1], p.y, **here).backward()
    assert clean.grad is not None
    assert dirty.grad is not None
    assert torch.equal(clean.grad, dirty.grad)
    assert (dirty.grad[p.y == -100] == 0).all()


def backward_twice(rank: int, n: int, backend: str) -> None:
    p = problem(24, 19, CLASSES, share=0.5)
    for budget in (None, 700):
        heads, here = spread(p, {"backend": backend, "memory_budget": budget}, rank, n)
        leaves = [t.clone().requires_grad_() for t in heads]
        loss = linear_cross_entropy(*leaves, p.y, **here)
        once = torch.autograd.grad(loss, leaves, retain_graph=True)
        for a, b in zip(once, torch.autograd.grad(loss, leaves), strict=True):
            torch.testing.assert_close(a, b)


def needs(rank: int, n: int, backend: str) -> None:
    p = problem(24, 19, CLASSES)
    for frozen in (0, 1):
        leaves = [t.clone().requires_grad_(i != frozen) for i, t in enumerate(spread(p, {}, rank, n)[0])]
        linear_cross_entropy(*leaves, p.y, tp_group=dist.group.WORLD, backend=backend).backward()
        assert leaves[frozen].grad is None
        assert leaves[1 - frozen].grad is not None


def compiled(rank: int, n: int, backend: str) -> None:
    p = problem(24, 19, CLASSES, share=0.5)
    heads, here = spread(p, {"backend": backend, "label_smoothing": 0.1}, rank, n)

    def loss(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        value: Tensor = linear_cross_entropy(x, w, y, **here)
        return value

    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(eager.evaluate(f, heads, p.y, {}) for f in (whole, loss)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("what", [statistics, ignored_rows, backward_twice, needs, compiled])
def test_like_the_whole(what: Callable[..., None], backend: str) -> None:
    run_on(2, what, backend)


def test_sure_predictions() -> None:
    run_on(2, sure_predictions, "cpu")  # the reference has the cancellation of torch's log_softmax


def dtensors(rank: int, n: int) -> None:
    """37 classes over 2 and over 4: the last rank has fewer."""
    mesh = init_device_mesh("cpu", (n,))
    p = problem(24, 19, 37, share=0.5)
    bias = p.eighths(37)
    truth = eager.evaluate(eager.linear_cross_entropy, [p.x, p.w], p.y, {"linear_bias": bias})
    w, b = (distribute_tensor(t, mesh, [Shard(0)]).requires_grad_() for t in (p.w, bias))
    for x, given in (
        (distribute_tensor(p.x, mesh, [Replicate()]).requires_grad_(), {}),
        (p.x.clone().requires_grad_(), {"tp_group": mesh.get_group()}),
    ):
        loss = linear_cross_entropy(x, w, p.y, linear_bias=b, **given)
        found = [loss, *torch.autograd.grad(loss, [x, w, b])]
        assert isinstance(found[2], DTensor)
        for got, expected in zip(found, truth, strict=True):
            got = got.full_tensor() if isinstance(got, DTensor) else got
            torch.testing.assert_close(got.detach(), expected)
    whole = distribute_tensor(p.w, mesh, [Replicate()])
    torch.testing.assert_close(linear_cross_entropy(p.x, whole, p.y, linear_bias=bias), truth[0])


@pytest.mark.parametrize("n", [2, 4])
def test_dtensors(n: int) -> None:
    run_on(n, dtensors)


def refusals(rank: int, n: int) -> None:
    mesh = init_device_mesh("cpu", (n,))
    p = problem(24, 19, CLASSES)
    group = mesh.get_group()

    def w(placement: Any, rows: int = CLASSES) -> Tensor:
        return distribute_tensor(p.w[:rows], mesh, [placement])

    with pytest.raises(ValueError, match=r"pass tp_group=.*full_tensor"):
        linear_cross_entropy(p.x, w(Shard(0)), p.y)
    with pytest.raises(ValueError, match=r"linear_weight.*expected Shard\(0\)"):
        linear_cross_entropy(p.x, w(Shard(1)), p.y, tp_group=group)
    with pytest.raises(ValueError, match="not over tp_group"):
        linear_cross_entropy(p.x, w(Replicate()), p.y, tp_group=group)
    with pytest.raises(ValueError, match=r"input is a DTensor.*expected Replicate"):
        linear_cross_entropy(distribute_tensor(p.x, mesh, [Shard(0)]), w(Shard(0)), p.y)
    with pytest.raises(ValueError, match="none for the last of 2 ranks"):
        linear_cross_entropy(p.x, w(Shard(0), 1), p.y, tp_group=group)
    with pytest.raises(ValueError, match="linear_bias must be a DTensor"):
        linear_cross_entropy(p.x, w(Shard(0)), p.y, linear_bias=p.w[:, 0], tp_group=group)
    with pytest.raises(ValueError, match=r"has \[18, 17\] rows on the ranks"):
        linear_cross_entropy(p.x, p.w[: 18 - rank], p.y, tp_group=group)
    with pytest.raises(NotImplementedError, match=r"class probabilities.*tp_group"):
        linear_cross_entropy(p.x, mine(p.w, rank, n), p.z.softmax(-1), tp_group=group)
    x = p.x.clone().requires_grad_()
    loss = linear_cross_entropy(x, mine(p.w, rank, n), p.y, tp_group=group)
    with pytest.raises(NotImplementedError, match=r"double backward.*tp_group"):
        torch.autograd.grad(loss, x, create_graph=True)
    p.y[7] = CLASSES
    with pytest.raises(IndexError, match=rf"target\[7\].*{CLASSES}; expected a class in 0..{CLASSES - 1}"):
        linear_cross_entropy(p.x, mine(p.w, rank, n), p.y, tp_group=group)


def test_refusals() -> None:
    run_on(2, refusals)
