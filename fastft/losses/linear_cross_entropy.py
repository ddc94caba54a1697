"""Head and loss in one: the projection runs on supervised rows only, and logits become their gradient in place."""

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from fastft.losses import arguments, gradients, parallel, schedule
from fastft.losses.cross_entropy import accumulation_dtype, differentiable, known_scalar, probabilities, rescale
from fastft.losses.reduction import LossStats, coefficients, ignore_weightless, loss_stats


@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *,
    return_stats: Literal[False] = False, **options: Unpack[arguments.HeadOptions],
) -> Tensor: ...  # fmt: skip


@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *,
    return_stats: Literal[True], **options: Unpack[arguments.HeadOptions],
) -> tuple[Tensor, LossStats]: ...  # fmt: skip


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    linear_rows: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    token_weight: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    z_loss: float = 0.0,
    num_items: float | Tensor | None = None,
    valid: Tensor | None = None,
    memory_budget: int | None = None,
    tp_group: Any = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, LossStats]:
    r"""`cross_entropy(input @ linear_weight.T + linear_bias, target)` paying for supervised tokens only.

    A superset of `torch.nn.functional.linear_cross_entropy`. With N tokens of which M are supervised,
    `x` the hidden states and `W` the head, `z = cap(logit_scale * (x W^T + bias))`; the loss, its options,
    statistics and errors are those of `fastft.losses.cross_entropy`. Cost: 6 M V D flop and `memory_budget`
    beyond the gradients, whatever N is (and 4 V D bytes where dw of bf16 rows needs several chunks: it is summed
    in fp32). Ignored rows of `input`, NaN included, reach neither the loss nor a gradient; their own gradient is
    exactly 0.

    Args:
        input: hidden states `(..., D)`, fp16, bf16, fp32 or fp64; under `torch.autocast` it and the head are
            cast as `F.linear` would.
        linear_weight: `(V, D)`, of input's dtype. A head that needs no gradient costs no gradient.
        target: class indices `(...)`, int64 (class probabilities: torch's own path, full logits).
        linear_bias: `(V,)`.
        linear_rows: `(ids, rows)`, int64 `(R,)` and `(R, D)`: train these rows of a frozen head alone. `linear_weight`
            holds their values already (in its dtype); their gradient, dz[:, ids]^T x, goes to `rows`.
        ignore_index: as in torch; None, torch's default here, means -100.
        valid: positions of the supervised tokens in the flattened `target`, int64, ascending, each once: spares
            the GPU synchronisation that finding them costs. What it leaves out is ignored. It may end in -1s, so
            that a CUDA graph, of fixed shapes, takes any number of tokens up to its length.
        memory_budget: bytes for logits. If all M rows fit, they are kept for backward; else rows go through
            in equal chunks. None: 64 to 256 MiB on the CPU, a quarter of the free memory on a GPU.
        tp_group: a `torch.distributed` process group over which the classes are spread: rank r's `linear_weight`
            and `linear_bias` are V / R consecutive rows of the head, `input`, `target` and all else (`weight` has V
            values) are the same on every rank, as are loss, statistics and input's gradient. A `DTensor` head,
            `Shard(0)`, brings its own group and may be uneven, where `input` is a replicated DTensor too.

    Returns:
        The loss in fp32 (fp64 for fp64 input), a scalar or shaped like `target`; with `return_stats` a pair
        `(loss, LossStats)`.

    The schedule (in-place gradient, chunks of rows) is Liger-Kernel's idea (arXiv:2410.10989), preceded by
    compaction and, where it fits, without chunks.
    """
    arguments.head(input, linear_weight, linear_bias)
    shard = parallel.shard_of(input, linear_weight, linear_bias, tp_group)
    input, linear_weight, linear_bias = map(parallel.local, (input, linear_weight, linear_bias))
    target, token_weight, weight = map(parallel.local, (target, token_weight, weight))
    cast = autocast_to(input)
    if cast is not None:
        input, linear_weight = input.to(cast), linear_weight.to(cast)
        linear_bias = None if linear_bias is None else linear_bias.to(cast)
    arguments.same_dtype("linear_weight", linear_weight, input)
    arguments.same_dtype("linear_bias", linear_bias, input)
    ignore_index = -100 if ignore_index is None else ignore_index
    arguments.options(reduction, ignore_index, label_smoothing, softcap, logit_scale, z_loss, num_items)
    vocab, width = shard.vocab, linear_weight.shape[1]
    row_ids, row_weight = arguments.head_rows(linear_rows, linear_weight, shard.group)
    if isinstance(target, Tensor) and target.is_floating_point():
        arguments.only_for_class_indices(token_weight, z_loss, num_items, return_stats)
        arguments.not_parallel(shard.group, "class probabilities")
        logits = F.linear(input, with_rows(linear_weight, row_ids, row_weight), linear_bias)
        return probabilities(logits, target, weight, reduction, label_smoothing, softcap, logit_scale)
    arguments.class_indices(target, input)
    arguments.shape("target", target, tuple(input.shape[:-1]), "that of input without its last dimension")
    arguments.per_token("token_weight", token_weight, target)
    arguments.per_class("weight", weight, vocab, input)
    arguments.positions(valid, target)
    arguments.memory_budget(memory_budget)

    labels = ignore_weightless(target, token_weight, ignore_index).reshape(-1)
    token_weight = None if token_weight is None else token_weight.reshape(-1)
    x, n, reduced = input.reshape(-1, width), labels.shape[0], reduction != "none"
    if not torch.compiler.is_compiling():
        valid = schedule.supervised(labels, ignore_index, valid)
    if valid is not None:
        labels = schedule.at(labels, valid, ignore_index)
        token_weight = None if token_weight is None else schedule.at(token_weight, valid, 0)
    rows, q = coefficients(
        labels, vocab, accumulation_dtype(input), weight=weight, token_weight=token_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, z_loss=z_loss, reduction=reduction, num_items=num_items,
    )  # fmt: skip
    m = None if torch.compiler.is_compiling() else labels.shape[0]
    trained = linear_weight if row_weight is None else row_weight
    plan = schedule.plan(x, trained, linear_bias, m, shard, budget=memory_budget, reduced=reduced)
    arrays = (x, linear_weight, linear_bias, labels, rows, q, valid)
    options = (float(logit_scale), softcap or 0.0, ignore_index, reduced)
    try:
        loss, stats, *_ = _linear_cross_entropy(*arrays, *options, *plan, backend, row_weight, row_ids)
    except RuntimeError as error:
        if plan.mode != "store" or plan.group or not schedule.is_out_of_memory(error):
            raise
        plan = plan._replace(mode="grads" if reduced else "stats")
        loss, stats, *_ = _linear_cross_entropy(*arrays, *options, *plan, backend, row_weight, row_ids)
    loss = loss if reduced else schedule.spread_tokens(loss, valid, n).reshape(target.shape)
    if not return_stats:
        return loss
    return loss, loss_stats(schedule.spread_tokens(stats, valid, n), target.shape)


def autocast_to(input: Tensor) -> torch.dtype | None:
    """What torch.autocast casts F.linear to, if it does; it does not see inside a custom op."""
    device = input.device.type
    autocast = torch.is_autocast_enabled(device) and input.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else None


def with_rows(w: Tensor, row_ids: Tensor | None, row_weight: Tensor | None) -> Tensor:
    """w (V, D) whose rows `row_ids` are `row_weight` (R, D) for autograd too: a copy."""
    if row_ids is None or row_weight is None:
        return w
    return w.index_copy(0, row_ids, row_weight.to(w.dtype))


@torch.library.custom_op("fastft::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    x: Tensor, w: Tensor, bias: Tensor | None, labels: Tensor, rows: Tensor, q: Tensor | None, valid: Tensor | None,
    scale: float, softcap: float, ignore_index: int, reduced: bool,
    mode: str, need_x: bool, need_w: bool, need_bias: bool, compacts: bool, budget: int, group: str, first: int,
    vocab: int, backend: str, row_weight: Tensor | None = None, row_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`schedule.run` with a `schedule.Plan` spelt out: loss, statistics, dz, dx, dw, dbias.

    Given `row_ids` (R,), dw is that of `row_weight` (R, D), whose values are not read: w holds them.
    """
    plan = schedule.Plan(mode, need_x, need_w, need_bias, compacts, budget, group, first, vocab)
    return tuple(  # type: ignore[return-value]
        schedule.run(x, w, bias, labels, rows, q, valid, scale, softcap, ignore_index, reduced, plan, backend, row_ids)
    )


@_linear_cross_entropy.register_fake
def _(  # type: ignore[no-untyped-def]
    x, w, bias, labels, rows, q, valid, scale, softcap, ignore_index, reduced, mode, need_x, need_w, need_bias,
    compacts, budget, group, first, vocab, backend, row_weight=None, row_ids=None,
):  # fmt: skip
    k, now, wide = labels.shape[0], mode == "grads", gradients.wide(x.dtype)
    return (
        rows.new_empty(() if reduced else (k,)),
        rows.new_empty(5, k),
        x.new_empty(k, w.shape[0]) if mode == "store" else x.new_empty(0),
        x.new_empty(x.shape if now and need_x else 0, dtype=wide),
        x.new_empty((w if row_weight is None else row_weight).shape if now and need_w else 0, dtype=wide),
        x.new_empty(w.shape[0] if now and need_bias else 0, dtype=wide),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *arrays, ctx.scale, ctx.softcap, ctx.ignore_index, ctx.reduced = inputs[:11]
    *plan, ctx.backend, row_weight, row_ids = inputs[11:]
    ctx.plan = schedule.Plan(*plan)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else backward is given a zero tensor of each output's size
    ctx.save_for_backward(*arrays, output[2], row_weight, row_ids)
    ctx.made = output[3:] if ctx.plan.mode == "grads" else None


def _backward(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    rest = (None,) * (INPUTS - 5)
    if g is None:
        return None, None, None, *rest, None, None
    x, w, bias, labels, rows, q, valid, dz, row_weight, row_ids = ctx.saved_tensors
    need_x, need_w, need_bias, *_, need_rows, _ = ctx.needs_input_grad
    needs = (need_x, need_w or need_rows, need_bias)
    options = (ctx.scale, ctx.softcap, ctx.ignore_index)
    grads: tuple[Tensor, ...]
    if torch.is_grad_enabled():  # double backward
        arguments.not_parallel(ctx.plan.group, "double backward")
        trained = w if row_weight is None else row_weight
        wanted = [t for t, need in zip((x, trained, bias), needs, strict=True) if need]
        xs = x if valid is None else torch.where((labels != ctx.ignore_index)[:, None], x[valid.clamp(min=0)], 0)
        logits = F.linear(xs, with_rows(w, row_ids, row_weight), bias)
        loss = differentiable(logits, labels, rows, q, *options, ctx.reduced)
        found = iter(torch.autograd.grad(loss, wanted, g, create_graph=True))
        dx, dw, dbias = (next(found) if need else None for need in needs)
        return dx, dw if need_w else None, dbias, *rest, dw if need_rows else None, None
    if ctx.plan.mode == "store":
        sums = gradients.Gradients(x, w, needs, len(dz), 1, ctx.plan.group, row_ids)
        xs, scale = gradients.gathered(x, valid, labels != ctx.ignore_index), gradients.row_scale(rows, x.dtype)
        sums.add(dz, xs, slice(0, len(dz)), scale, known_scalar(g) if ctx.reduced else g[:, None])
        grads = sums.finish(valid, len(x), x.dtype)
    else:
        made, ctx.made = ctx.made, None  # given away: a second backward makes its own
        if made is None:
            weighted = rows * (g if ctx.reduced else g[:, None])
            now = ctx.plan._replace(mode="grads", need_x=needs[0], need_w=needs[1], need_bias=needs[2])
            arrays = (x, w, bias, labels, weighted, q, valid)
            made = _linear_cross_entropy(*arrays, *options, True, *now, ctx.backend, row_weight, row_ids)[3:]
        else:
            made = [rescale(t, known_scalar(g)) for t in made]
        grads = tuple(t.to(x.dtype) for t in made)
    dx, dw, dbias = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return dx, dw if need_w else None, dbias, *rest, dw if need_rows else None, None


INPUTS = 11 + len(schedule.Plan._fields) + 3
_linear_cross_entropy.register_autograd(_backward, setup_context=_save)
