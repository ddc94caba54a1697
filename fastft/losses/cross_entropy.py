"""Masked cross-entropy of given logits: ignored rows are neither read nor, in memory, copied."""

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary
from typing_extensions import Unpack

from fastft import dispatch
from fastft.losses import arguments
from fastft.losses.reduction import LossStats, coefficients, combine, ignore_weightless, loss_stats

NAME, BACKENDS = "cross_entropy", ("cuda", "triton", "cpu", "reference")  # best first


@overload
def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    return_stats: Literal[False] = False, **options: Unpack[arguments.Options],
) -> Tensor: ...  # fmt: skip


@overload
def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, ignore_index: int = -100,
    return_stats: Literal[True], **options: Unpack[arguments.Options],
) -> tuple[Tensor, LossStats]: ...  # fmt: skip


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    token_weight: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    num_items: float | Tensor | None = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, LossStats]:
    r"""Cross-entropy of logits; a superset of `torch.nn.functional.cross_entropy`.

    With `z = cap(logit_scale * input)`, `cap(u) = softcap * tanh(u / softcap)`, and `eps = label_smoothing`:

        nll_i  = lse_i - z_iy,   lse_i = log sum_v exp z_iv
        loss_i = w_i [(1 - eps) nll_i + eps mean_v(lse_i - z_iv) + z_loss lse_i^2]
        mean   = sum_i loss_i / sum_i w_i,   w_i = token_weight_i weight[target_i]

    Args:
        input: logits `(..., V)`, or torch's `(N, C, d1, ...)`, which is taken where both forms fit. fp16, bf16,
            fp32 or fp64; softmax and sums run in fp32 (fp64 for fp64).
        target: class indices `(...)`, int64. Class probabilities (floating, shaped like `input`) are handed
            to torch's own function, with `weight`, `label_smoothing`, `softcap` and `logit_scale` only.
        weight: `(V,)` class weights, by torch's definition also under label smoothing.
        ignore_index: a target with this value has no loss; its logits never reach the result, not even NaN,
            and their gradient is exactly 0.
        reduction: `"mean"`, `"sum"` or `"none"`.
        token_weight: `(...)` float, constant. 0 means ignored.
        softcap, logit_scale, z_loss: see above; z_loss is PaLM's lse^2 penalty (arXiv:2204.02311, 5).
        num_items: replaces the mean's denominator: the count over a whole accumulation window and all ranks.
        return_stats: also return `LossStats(nll, lse, correct, entropy)`, per token, detached.
        backend: `"auto"`, or one of `cuda | triton | cpu | reference`.

    Returns:
        The loss in fp32 (fp64 for fp64 logits), a scalar or shaped like `target`; with `return_stats` a pair.
        Where no token is supervised it is a differentiable 0, while torch's mean is NaN.

    Raises:
        ValueError, TypeError: an argument's shape, dtype, device or value; the message says what is wanted.
        IndexError: a target outside `[0, V)`, on the CPU (on a GPU with FASTFT_CHECK=1, else the loss is NaN).
        NotImplementedError: the asked-for backend cannot run, and why.

    Double backward is handed to torch's own operations.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            cross_entropy, (input,), input, target, weight,  # type: ignore[arg-type]  # mypy takes no overloads here
            ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, token_weight=token_weight,
            softcap=softcap, logit_scale=logit_scale, z_loss=z_loss, num_items=num_items, return_stats=return_stats,
            backend=backend,
        )  # fmt: skip
    arguments.floating("input", input)
    arguments.options(reduction, ignore_index, label_smoothing, softcap, logit_scale, z_loss, num_items)
    if isinstance(target, Tensor) and target.is_floating_point():
        arguments.only_for_class_indices(token_weight, z_loss, num_items, return_stats)
        return probabilities(input, target, weight, reduction, label_smoothing, softcap, logit_scale)
    arguments.class_indices(target, input)
    arguments.per_token("token_weight", token_weight, target)
    logits = rows_of(input, target)
    arguments.per_class("weight", weight, logits.shape[1], input)
    labels = ignore_weightless(target, token_weight, ignore_index).reshape(-1)
    rows, q = coefficients(
        labels, logits.shape[1], accumulation_dtype(input), weight=weight,
        token_weight=None if token_weight is None else token_weight.reshape(-1), ignore_index=ignore_index,
        label_smoothing=label_smoothing, z_loss=z_loss, reduction=reduction, num_items=num_items,
    )  # fmt: skip
    reduced = reduction != "none"
    with_grad = reduced and torch.is_grad_enabled() and input.requires_grad
    loss, stats, _ = _cross_entropy(
        logits, labels, rows, q, float(logit_scale), softcap or 0.0, ignore_index, reduced, with_grad, backend
    )
    loss = loss if reduced else loss.reshape(target.shape)
    return (loss, loss_stats(stats, target.shape)) if return_stats else loss


def rows_of(input: Tensor, target: Tensor) -> Tensor:
    """Logits as (tokens, V), from (N, C, d1, ...) as torch has it, or from (..., V)."""
    if input.dim() >= 2 and (input.shape[0], *input.shape[2:]) == target.shape:
        input = input.movedim(1, -1)
    elif input.dim() == 0 or input.shape[:-1] != target.shape:
        got = f"input {tuple(input.shape)}, target {tuple(target.shape)}"
        raise ValueError(
            f"shapes do not fit: {got}; expected (..., V) with (...), or (N, C, d1, ...) with (N, d1, ...)"
        )
    return input.reshape(target.numel(), input.shape[-1])


def kernel_for(like: Tensor, backend: str) -> Any:
    return dispatch.pick(NAME, BACKENDS, backend, like)


def room(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised buffer; on the CPU, where it is large, on huge pages."""
    buffer = like.new_empty(shape, dtype=dtype)
    memory, _ = dispatch.load("memory", "cpu")
    if memory is not None and type(buffer) is Tensor:  # not while tracing
        memory.advise(buffer)
    return buffer


def zeros(like: Tensor) -> Tensor | None:
    """On the CPU, a large buffer of zeros that cost no pass over it; elsewhere None."""
    memory, _ = dispatch.load("memory", "cpu")
    if memory is None or like.device.type != "cpu":
        return None
    made: Tensor | None = memory.zeros(like.shape, like.dtype)
    return made


def accumulation_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def transformed(logits: Tensor, softcap: float | None, logit_scale: float) -> Tensor:
    logits = logits * logit_scale if logit_scale != 1.0 else logits
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def probabilities(
    logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float,
    softcap: float | None, logit_scale: float,
) -> Tensor:  # fmt: skip
    """Class-probability targets: torch's own function, with its (C,), (N, C) or (N, C, d1, ...)."""
    arguments.shape("target", target, tuple(logits.shape), "class probabilities shaped like input")
    z = transformed(logits, softcap, logit_scale)
    return F.cross_entropy(z, target, weight, reduction=reduction, label_smoothing=label_smoothing)


def normalized(target: Tensor, vocab: int, ignore_index: int, positions: Tensor | None = None) -> Tensor:
    """Checked targets for a kernel: negative means ignored, V means out of range."""
    arguments.targets_in_range(target, vocab, ignore_index, positions)
    inside = torch.where((target < 0) | (target >= vocab), vocab, target)
    return torch.where(target == ignore_index, -1, inside)


@torch.library.custom_op("fastft::cross_entropy", mutates_args=())
def _cross_entropy(
    logits: Tensor, target: Tensor, rows: Tensor, q: Tensor | None, scale: float, softcap: float,
    ignore_index: int, reduced: bool, with_grad: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss () or (K,), statistics (5, K), and with `with_grad` the gradient of sum_i loss_i, else (0,)."""
    kernel = kernel_for(logits, backend)
    target = normalized(target, logits.shape[1], ignore_index)
    grad = zeros(logits) if with_grad else None
    if grad is not None:
        target = torch.where(target == -1, -2, target)  # zeros are not written twice
    elif with_grad:
        grad = room(logits, *logits.shape)
    stats = kernel.cross_entropy(logits, target, rows, q, scale, softcap, grad)
    return combine(stats, rows, reduced), stats, logits.new_empty(0) if grad is None else grad


@_cross_entropy.register_fake
def _(logits, target, rows, q, scale, softcap, ignore_index, reduced, with_grad, backend):  # type: ignore[no-untyped-def]
    loss = rows.new_empty(() if reduced else (logits.shape[0],))
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format) if with_grad else logits.new_empty(0)
    return loss, rows.new_empty(5, logits.shape[0]), grad


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, ctx.scale, ctx.softcap, ctx.ignore_index, ctx.reduced, with_grad, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else backward is given a zero tensor of each output's size
    ctx.save_for_backward(*arrays)
    ctx.made = output[2] if with_grad else None


def _backward(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 10
    logits, target, rows, q = ctx.saved_tensors
    options = (ctx.scale, ctx.softcap, ctx.ignore_index)
    if torch.is_grad_enabled():  # double backward
        loss = differentiable(logits, target, rows, q, *options, ctx.reduced)
        return torch.autograd.grad(loss, logits, g, create_graph=True)[0], *[None] * 9
    made, ctx.made = ctx.made, None  # given away: a second backward makes its own
    if made is None:
        weighted = rows * (g if ctx.reduced else g[:, None])
        grad = _cross_entropy(logits, target, weighted, q, *options, True, True, ctx.backend)[2]
    else:
        grad = rescale(made, known_scalar(g))
    return grad, *[None] * 9


_cross_entropy.register_autograd(_backward, setup_context=_save)


def known_scalar(g: Tensor) -> Tensor | float:
    """A scalar's value, where reading it neither synchronises nor traces."""
    return g.item() if type(g) is Tensor and g.device.type == "cpu" else g


def is_one(factor: Tensor | float) -> bool:
    return isinstance(factor, float) and factor == 1.0


def rescale(t: Tensor, factor: Tensor | float) -> Tensor:
    return t if is_one(factor) else (t * factor).to(t.dtype)


def differentiable(
    logits: Tensor, target: Tensor, rows: Tensor, q: Tensor | None, scale: float, softcap: float,
    ignore_index: int, reduced: bool,
) -> Tensor:  # fmt: skip
    """The same loss through torch's operations, for double backward."""
    y, keep = normalized(target, logits.shape[1], ignore_index), target != ignore_index
    z = transformed(torch.where(keep[:, None], logits, 0).to(rows.dtype), softcap, scale)
    nll = -z.log_softmax(-1).gather(1, y.clamp(min=0)[:, None])[:, 0]
    return combine([nll, z.logsumexp(-1), z.mean(-1) if q is None else z @ q], rows, reduced)


__all__ = ["LossStats", "cross_entropy"]
