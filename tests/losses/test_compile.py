"""torch.compile(fullgraph=True) of both losses: the values and gradients of eager, with static and dynamic shapes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastft.losses import cross_entropy, linear_cross_entropy
from losses.cases import HEAD_OPTIONS, OPTIONS, Problem, problem, with_ignored


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def results(function: Callable[..., Any], tensors: Sequence[Tensor], *constants: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    value = function(*leaves, *constants)
    loss, stats = value if isinstance(value, tuple) else (value, ())
    return [loss.detach(), *stats, *torch.autograd.grad((loss * 0.5).sum(), leaves)]


def same(
    compiled: Callable[..., Any], eager: Callable[..., Any], tensors: Sequence[Tensor], *constants: Tensor
) -> None:
    got, expected = results(compiled, tensors, *constants), results(eager, tensors, *constants)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)


def both(options: dict[str, Any]) -> dict[str, tuple[Callable[..., Any], Callable[[Problem], Sequence[Tensor]]]]:
    head = {name: value for name, value in options.items() if name in ("memory_budget", "linear_bias")}
    rest = {name: value for name, value in options.items() if name not in head}
    return {
        "cross_entropy": (lambda z, y: cross_entropy(z, y, **rest), lambda p: (p.z,)),
        "linear_cross_entropy": (lambda x, w, y: linear_cross_entropy(x, w, y, **options), lambda p: (p.x, p.w)),
    }


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
@pytest.mark.parametrize("option", ["plain", "everything_in_chunks"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_fullgraph(name: str, option: str, reduction: str) -> None:
    p = problem(24, 19, 37, share=0.4)
    options = {**(OPTIONS | HEAD_OPTIONS)[option](p), "reduction": reduction, "return_stats": True}
    function, tensors = both(options)[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    y = with_ignored(p.y, options)
    same(compiled, function, tensors(p), y)
    same(compiled, function, tensors(p), y.roll(5))  # another number of supervised tokens, the same graph


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
@pytest.mark.parametrize("plain", [True, False])
def test_fullgraph_with_dynamic_shapes(name: str, plain: bool) -> None:
    weight = problem(24, 19, 37).eighths(37, low=1)
    options = {"weight": weight, "label_smoothing": 0.1, "softcap": 5.0, "logit_scale": 0.5, "z_loss": 1e-3}
    function, tensors = both({} if plain else options)[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, share in ((24, 0.4), (31, 0.9), (7, 0.0), (12, 1.0)):
        p = problem(n, 19, 37, share=share)
        same(compiled, function, tensors(p), p.y)


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
def test_one_graph_for_every_length(name: str) -> None:
    """After the second length no further one compiles anew, nor does any share of ignored tokens."""
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function, tensors = both({})[name]
    compiled = torch.compile(function, fullgraph=True, backend=graphs)
    for n, share in ((24, 0.4), (31, 0.5), (40, 0.9), (52, 0.0), (9, 1.0)):
        p = problem(n, 19, 37, share=share)
        same(compiled, function, tensors(p), p.y)
    assert graphs.frame_count <= 2


def test_valid_under_compile() -> None:
    def function(x: Tensor, w: Tensor, y: Tensor, valid: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, y, valid=valid)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for share in (0.4, 0.8):
        p = problem(24, 19, 37, share=share)
        valid = (p.y != -100).nonzero()[:, 0]
        same(compiled, function, (p.x, p.w), p.y, valid)
        same(compiled, function, (p.x, p.w), p.y, torch.nn.functional.pad(valid, (0, 7), value=-1))


def test_a_model_around_the_loss() -> None:
    """The loss at the end of a compiled module under autocast, its parameters trained."""
    torch.manual_seed(0)
    body, head = torch.nn.Linear(19, 19), torch.nn.Linear(19, 37)
    parameters = [*body.parameters(), *head.parameters()]
    p = problem(24, 19, 37, share=0.4)

    def step(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(torch.relu(body(x)), head.weight, y, linear_bias=head.bias, softcap=10.0)

    losses = [f(p.x, p.y) for f in (torch.compile(step, fullgraph=True, backend="aot_eager"), step)]
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)


def test_no_grad_under_compile() -> None:
    p = problem(24, 19, 37, share=0.4)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(p.x, p.w, p.y), linear_cross_entropy(p.x, p.w, p.y))


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy"])
def test_inductor(name: str) -> None:
    function, tensors = both({"label_smoothing": 0.1, "softcap": 10.0})[name]
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for n in (24, 31):
        p = problem(n, 19, 37, share=0.4)
        same(compiled, function, tensors(p), p.y)


def test_bad_target_under_compile() -> None:
    p = problem(24, 19, 37)
    p.y[3] = 37
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match=r"target\[3\] .* is 37"):
        compiled(p.x, p.w, p.y)
