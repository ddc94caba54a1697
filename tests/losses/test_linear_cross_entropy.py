"""fastft.losses.linear_cross_entropy against fp64, and against torch's own error at the same dtype."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerance import no_worse
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastft.losses import linear_cross_entropy, schedule
from losses import eager
from losses.cases import DTYPES, HEAD_OPTIONS, MEAN_OPTIONS, OPTIONS, REDUCTIONS, SHARES, Problem, problem, with_ignored

LOW = (torch.float32, torch.bfloat16, torch.float16)
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")
OUTPUTS = ("loss", "dx", "dw", "dbias")
# The logits are rounded too, which moves a probability by up to |z| roundings, and so are the products.
HEAD_ROUNDINGS = {torch.float16: 4, torch.bfloat16: 4, torch.float32: 12, torch.float64: 12}
ALL_OPTIONS = OPTIONS | HEAD_OPTIONS | MEAN_OPTIONS


def check(
    p: Problem, options: dict[str, Any], backend: str, upstream: float | Tensor = 1.0, what: str = "", **tolerance: Any
) -> None:
    """Loss and every gradient of fastft, torch in the same dtype, and fp64."""
    heads, y = [p.x, p.w], with_ignored(p.y, options)
    truth = eager.evaluate(eager.linear_cross_entropy, heads, y, options, upstream, torch.float64)
    torchs = eager.evaluate(eager.linear_cross_entropy, heads, y, options, upstream, p.x.dtype)
    got = eager.evaluate(linear_cross_entropy, heads, y, {**options, "backend": backend}, upstream)
    assert [t.dtype for t in got] == [torch.promote_types(p.x.dtype, torch.float32), *[p.x.dtype] * (len(got) - 1)]
    tolerance = {"roundings": HEAD_ROUNDINGS[p.x.dtype], **tolerance}
    for name, g, t, f in zip(OUTPUTS, got, torchs, truth, strict=False):
        no_worse(f"{what} {name}", g, t, f, p.x.dtype, **tolerance)


@pytest.mark.parametrize("option", ALL_OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_worse_than_torch(option: str, dtype: torch.dtype, backend: str, takes: Callable[..., None]) -> None:
    takes(dtype)
    for share in SHARES:
        for reduction in ("mean",) if option in MEAN_OPTIONS else REDUCTIONS:
            p = problem(24, 19, 37, dtype, share)
            check(p, {**ALL_OPTIONS[option](p), "reduction": reduction}, backend, what=f"{share:.0%} {reduction}:")


@pytest.mark.parametrize("budget", [None, 1 << 15], ids=["one_chunk", "chunks"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_no_worse_than_torch_over_many_values(
    budget: int | None, dtype: torch.dtype, backend: str, takes: Callable[..., None]
) -> None:
    """With luck evened out, and with rows in dozens of chunks, each of which adds to the head's gradient."""
    takes(dtype)
    p = problem(4096, 24, 129, dtype)
    for reduction in ("mean", "none"):
        options = {"reduction": reduction, "memory_budget": budget, "linear_bias": p.eighths(129).to(dtype)}
        check(p, options, backend, what=reduction, roundings=3 if dtype == torch.float32 else 0.5, norms=(2.0,))


@pytest.mark.parametrize(
    "shape",
    [(0, 3, 7), (1, 1, 1), (3, 5, 1), (1, 3, 2), (5, 17, 7), (4, 1, 9), (3, 33, 50257), (2, 3, 262144)],
    ids=str,
)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_sizes(shape: tuple[int, int, int], dtype: torch.dtype, backend: str, takes: Callable[..., None]) -> None:
    takes(dtype)
    for name in ("plain", "bias", "label_smoothing", "everything_in_chunks"):
        p = problem(*shape, dtype)
        if len(p.y) > 1:
            p.y[1] = -100
        check(p, HEAD_OPTIONS.get(name, OPTIONS.get(name))(p), backend, what=name, scale=1.0 if shape[2] == 1 else 0.0)  # type: ignore[misc]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every_other_row": lambda t: t.repeat_interleave(2, 0)[::2],
    "every_other_column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "columns_of_a_wider": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [None, 6 * 37 * 4])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_not_contiguous(layout: str, budget: int | None, share: float, backend: str) -> None:
    p = problem(16, 19, 37, share=share)
    bias = p.eighths(74)[::2]
    weight, token_weight = p.eighths(74, low=1)[::2], p.eighths(32, low=1)[::2]
    options = {"linear_bias": bias, "weight": weight, "token_weight": token_weight, "memory_budget": budget}
    strided = p._replace(x=LAYOUTS[layout](p.x), w=LAYOUTS[layout](p.w), y=torch.stack([p.y, p.y], 1)[:, 0])
    check(strided, options, backend)


@pytest.mark.parametrize("shape", [(19,), (16, 19), (4, 4, 19), (2, 2, 4, 19)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_shapes(shape: tuple[int, ...], reduction: str, backend: str) -> None:
    p = problem(torch.Size(shape[:-1]).numel(), 19, 37, share=0.5 if len(shape) > 1 else 0.0)
    x = p.x.reshape(shape).requires_grad_()
    got = linear_cross_entropy(x, p.w, p.y.reshape(shape[:-1]), reduction=reduction, backend=backend)
    flat = p.x.detach().requires_grad_()
    expected = linear_cross_entropy(flat, p.w, p.y, reduction=reduction, backend=backend)
    assert torch.equal(got, expected.reshape(got.shape))
    assert got.shape == (shape[:-1] if reduction == "none" else ())
    got.sum().backward()
    expected.sum().backward()
    assert torch.equal(x.grad.reshape(flat.shape), flat.grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 700])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_valid_gives_the_same(reduction: str, budget: int | None, share: float, backend: str) -> None:
    p = problem(24, 19, 37, share=share)
    options = {"reduction": reduction, "memory_budget": budget, "token_weight": p.eighths(24), "backend": backend}
    valid = (p.y != -100).nonzero()[:, 0]
    without = eager.evaluate(linear_cross_entropy, [p.x, p.w], p.y, options)
    given = eager.evaluate(linear_cross_entropy, [p.x, p.w], p.y, {**options, "valid": valid})
    for a, b in zip(without, given, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 300])
@pytest.mark.parametrize("also", ["nothing", "ignored_target", "weightless_token"])
def test_what_valid_leaves_out_is_ignored(reduction: str, budget: int | None, also: str, backend: str) -> None:
    """And so is a position that `valid` lists although its target is ignored or its weight is 0."""
    p = problem(12, 19, 37)
    options: dict[str, Any] = {"reduction": reduction, "memory_budget": budget, "backend": backend}
    valid = torch.tensor([1, 3, 5, 8])
    left_out = [0, 2, 4, 6, 7, 9, 10, 11] if also == "nothing" else [0, 2, 4, 5, 6, 7, 9, 10, 11]
    if also == "ignored_target":
        p.y[5] = -100
    elif also == "weightless_token":
        options["token_weight"] = torch.ones(12)
        options["token_weight"][5] = 0
    expected = eager.evaluate(
        linear_cross_entropy, [p.x, p.w], p.y.index_fill(0, torch.tensor(left_out), -100), options
    )
    x = p.x.index_fill(0, torch.tensor(left_out), torch.nan)
    got = eager.evaluate(linear_cross_entropy, [x, p.w], p.y, {**options, "valid": valid})
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
@pytest.mark.parametrize("option", ["plain", "everything", "token_weight", "bias_and_chunks", "chunk_of_one_row"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_stay_out(junk: float, option: str, reduction: str, backend: str) -> None:
    p = problem(16, 19, 37, share=0.5)
    options = {**ALL_OPTIONS[option](p), "reduction": reduction, "backend": backend}
    y = with_ignored(p.y, options)
    ignored = y == options.get("ignore_index", -100)
    if "token_weight" in options:
        ignored |= options["token_weight"] == 0
    clean, dirty = (
        eager.evaluate(linear_cross_entropy, [x, p.w], y, options)
        for x in (p.x, p.x.masked_fill(ignored[:, None], junk))
    )
    for a, b in zip(clean, dirty, strict=True):
        assert b.isfinite().all()
        assert torch.equal(a, b)
    assert (dirty[1][ignored] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("why", ["targets", "token_weight", "valid", "empty"])
def test_nothing_supervised_is_a_differentiable_zero(
    reduction: str, budget: int | None, why: str, backend: str
) -> None:
    p = problem(0 if why == "empty" else 5, 19, 37)
    x, w, bias, y = torch.full_like(p.x, torch.nan), p.w, torch.zeros(37), p.y.clone()
    options: dict[str, Any] = {"reduction": reduction, "memory_budget": budget, "backend": backend, "linear_bias": bias}
    if why == "targets":
        y[:] = -100
    elif why == "token_weight":
        options["token_weight"] = torch.zeros(5)
    elif why == "valid":
        options["valid"] = torch.zeros(0, dtype=torch.int64)
    loss, *grads = eager.evaluate(linear_cross_entropy, [x, w], y, options)
    assert torch.equal(loss, torch.zeros(y.shape if reduction == "none" else ()))
    for grad, like in zip(grads, (x, w, bias), strict=True):
        assert torch.equal(grad, torch.zeros_like(like))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("upstream", [0.0, -3.0, 1024.0])
@pytest.mark.parametrize("budget", [None, 700])
def test_upstream_scalar(
    upstream: float, budget: int | None, dtype: torch.dtype, backend: str, takes: Callable[..., None]
) -> None:
    takes(dtype)
    p = problem(24, 19, 37, dtype, 0.5)
    check(p, {"memory_budget": budget, "linear_bias": p.eighths(37).to(dtype)}, backend, upstream)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("size", [1.0, 64.0])
@pytest.mark.parametrize("budget", [None, 700])
def test_upstream_vector(
    size: float, budget: int | None, dtype: torch.dtype, backend: str, takes: Callable[..., None]
) -> None:
    takes(dtype)
    p = problem(24, 19, 37, dtype, 0.5)
    upstream = size * p.eighths(24, low=-20, high=20)
    options = {"reduction": "none", "memory_budget": budget, "linear_bias": p.eighths(37).to(dtype)}
    check(p, options, backend, upstream)


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 700])
def test_frozen_parts(needs: tuple[bool, ...], reduction: str, budget: int | None, backend: str) -> None:
    """The gradients that are asked for do not depend on which others are."""
    p = problem(24, 19, 37, share=0.5)
    tensors = (p.x, p.w, p.eighths(37))
    whole = eager.evaluate(
        linear_cross_entropy, tensors[:2], p.y,
        {"linear_bias": tensors[2], "reduction": reduction, "memory_budget": budget, "backend": backend},
    )  # fmt: skip
    x, w, bias = (t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True))
    loss = linear_cross_entropy(x, w, p.y, linear_bias=bias, reduction=reduction, memory_budget=budget, backend=backend)
    assert loss.requires_grad == any(needs)
    torch.testing.assert_close(loss.detach(), whole[0])
    if any(needs):
        loss.sum().backward()
    for t, need, expected in zip((x, w, bias), needs, whole[1:], strict=True):
        assert (t.grad is not None) == need
        if need:
            torch.testing.assert_close(t.grad, expected)


@pytest.mark.parametrize(
    ("needs", "gemms"), [((False, False), 1), ((True, False), 2), ((False, True), 2), ((True, True), 3)]
)
@pytest.mark.parametrize("budget", [None, 700])
def test_what_is_not_needed_is_not_computed(
    needs: tuple[bool, bool], gemms: int, budget: int | None, backend: str
) -> None:
    """2 M V D flop per product, of the M supervised rows alone."""
    p = problem(24, 19, 37, share=0.5)
    x, w = (t.detach().requires_grad_(need) for t, need in zip((p.x, p.w), needs, strict=True))
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as run:
        loss = linear_cross_entropy(x, w, p.y, memory_budget=budget, backend=backend)
        if any(needs):
            loss.backward()
    # mm(a, b, ...) and addmm(c, a, b, ...)
    operands = [e.input_shapes[e.name != "aten::mm" :][:2] for e in run.events() if e.name in PRODUCTS]
    assert sum(2 * a[0] * a[1] * b[1] for a, b in operands) == gemms * 2 * 12 * 37 * 19


def test_no_grad_keeps_nothing(backend: str) -> None:
    p = problem(24, 19, 37, share=0.5)
    x, w = p.x.requires_grad_(), p.w.requires_grad_()
    with torch.no_grad():
        loss = linear_cross_entropy(x, w, p.y, backend=backend)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(p.x @ p.w.t(), p.y).detach())
    with torch.inference_mode():
        torch.testing.assert_close(linear_cross_entropy(x, w, p.y, backend=backend), loss)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_budget_changes_the_schedule_not_the_result(reduction: str, backend: str) -> None:
    p = problem(40, 19, 37, share=0.3)
    whole = eager.evaluate(linear_cross_entropy, [p.x, p.w], p.y, {"reduction": reduction, "backend": backend})
    for rows in (1, 2, 27, 28, 29, 1000):
        options = {"reduction": reduction, "memory_budget": rows * 37 * 4, "backend": backend}
        for a, b in zip(whole, eager.evaluate(linear_cross_entropy, [p.x, p.w], p.y, options), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [None, 64 * 32 * 2], ids=["one_chunk", "chunks"])
@pytest.mark.parametrize("case", ["one_class", "heavy_token", "loss_scaling", "large_hidden"])
def test_fp16_range(case: str, budget: int | None, backend: str) -> None:
    """Gradients that fp16 holds come out finite and right, whatever the schedule keeps in between."""
    p = problem(1024, 8, 32, torch.float16, spread=1.0)
    options: dict[str, Any] = {"memory_budget": budget}
    upstream: float | Tensor = 1.0
    if case == "one_class":  # the head's gradient sums 1024 equal signs
        p = p._replace(x=p.x.abs(), y=torch.full_like(p.y, 7))
    elif case == "heavy_token":  # one token has nearly all of the mean's weight
        options["token_weight"] = torch.full((1024,), 1 / 1024)
        options["token_weight"][5] = 1024.0
    elif case == "loss_scaling":  # as GradScaler's, with a mean taken by the user
        options["reduction"], upstream = "none", torch.full((1024,), 1024.0) / 8
    elif case == "large_hidden":
        p = p._replace(x=p.x * 64, w=p.w / 64)
    check(p, options, backend, upstream)


@pytest.mark.parametrize("budget", [None, 64 * 32 * 2], ids=["one_chunk", "chunks"])
def test_fp16_small_coefficients(budget: int | None, backend: str) -> None:
    """1 / num_items far below fp16's normal numbers still gives dW, whose sums over tokens are normal."""
    p = problem(1024, 8, 32, torch.float16, spread=1.0)
    p = p._replace(x=p.x.abs() * 8)
    options = {"num_items": 2.0**16, "memory_budget": budget}
    truth = eager.evaluate(eager.linear_cross_entropy, [p.x, p.w], p.y, options, 1.0, torch.float64)
    got = eager.evaluate(linear_cross_entropy, [p.x, p.w], p.y, {**options, "backend": backend})
    assert ((got[2].double() - truth[2]).norm() / truth[2].norm()).item() < 2e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("budget", [None, 700])
def test_autocast_is_torchs(dtype: torch.dtype, budget: int | None, backend: str) -> None:
    """fp32 tensors under autocast: as F.linear and F.cross_entropy, gradients in fp32."""
    p = problem(24, 19, 37, share=0.5)
    leaves = [t.detach().requires_grad_() for t in (p.x, p.w, p.eighths(37))]
    with torch.autocast("cpu", dtype):
        x, w, bias = leaves
        loss = linear_cross_entropy(x, w, p.y, linear_bias=bias, memory_budget=budget, backend=backend)
        torchs = F.cross_entropy(F.linear(x, w, bias), p.y)
    truth = F.cross_entropy(F.linear(*(t.to(dtype).double() for t in leaves)), p.y)
    for name, a, b, c in zip(
        OUTPUTS, *([t, *torch.autograd.grad(t, leaves)] for t in (loss, torchs, truth)), strict=True
    ):
        assert a.dtype == torch.float32
        no_worse(name, a, b, c, dtype, roundings=HEAD_ROUNDINGS[dtype])


def test_autocast_leaves_fp64_alone() -> None:
    p = problem(8, 19, 37, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(p.x, p.w, p.y)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, F.cross_entropy(p.x @ p.w.t(), p.y))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_class_probabilities_are_torchs_own(reduction: str, backend: str) -> None:
    p = problem(6, 19, 7)
    target, weight, bias = p.z.softmax(1), p.eighths(7), p.eighths(7)
    logits = F.linear(p.x, p.w, bias)
    expected = F.cross_entropy(3 * torch.tanh(logits / 3), target, weight, reduction=reduction, label_smoothing=0.1)
    got = linear_cross_entropy(
        p.x, p.w, target, linear_bias=bias, weight=weight, reduction=reduction, label_smoothing=0.1, softcap=3.0,
        backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("n", [1, 5, 128, 129, 1000, 4096])
@pytest.mark.parametrize("rows", [1, 7, 100, 128, 300, 5000])
def test_chunks_are_equal_and_within_budget(n: int, rows: int) -> None:
    chunk = schedule.chunk_rows(n, 64, rows * 64 + 63)
    assert 1 <= chunk <= min(n, rows)
    assert -(-n // chunk) == -(-n // min(n, rows)), "more chunks than the budget asks for"
    last = n - (-(-n // chunk) - 1) * chunk
    assert chunk - last < max(-(-n // chunk), schedule.ROW_MULTIPLE), "unequal by more than a tile"


@pytest.mark.parametrize("budget", [0, 1, 63])
def test_a_budget_below_one_row_still_runs(budget: int) -> None:
    assert schedule.chunk_rows(5, 64, budget) == 1


def test_out_of_memory_halves_the_chunk(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    """Where z cannot be allocated the call goes on with smaller chunks, says so once, and gives the same."""
    p = problem(64, 19, 37, share=0.25)
    options = {"backend": backend}
    expected = eager.evaluate(linear_cross_entropy, [p.x, p.w], p.y, options)
    new_empty = torch.Tensor.new_empty

    def little_memory(like: Tensor, *shape: Any, **kwargs: Any) -> Tensor:
        result = new_empty(like, *shape, **kwargs)
        if result.shape[-1:] == (37,) and result.dim() == 2 and len(result) > 12:
            raise torch.OutOfMemoryError("no room")
        return result

    monkeypatch.setattr(torch.Tensor, "new_empty", little_memory)
    with caplog.at_level("WARNING", "fastft"):
        got = eager.evaluate(linear_cross_entropy, [p.x, p.w], p.y, options)
    assert "out of memory" in caplog.text
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
