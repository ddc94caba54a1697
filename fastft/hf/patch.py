"""Switch lazy logits on and off for one model.

The output embedding's class becomes `LazyHead`, so the model copies, moves, saves and prints as before; hooks on
the model follow a head that `resize_token_embeddings` replaces, and say so when a loss was not fused.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils._pytree import tree_leaves

from fastft.hf.lazy_logits import LazyLogits, lazy_linear, transforming

HOOKS = "_fastft_hooks"  # the patched model's attribute that holds its hooks
ADVICE = "to fuse such a loss by hand, give its hidden states to fastft.losses.linear_cross_entropy"

M = TypeVar("M", bound=nn.Module)


class LazyHead(nn.Linear):
    """A model's own `nn.Linear` whose result is `LazyLogits`; `patch` makes it, nobody constructs it.

    `prepare` hides it from Dynamo: a compiled model ends its graph here and goes on with lazy logits.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not transforming():
            HEADS[self] = [weakref.ref(x) for x in self.parameters(recurse=False)]
            if is_sharded(type(self)):  # and not called by the model, which sees to it
                keep_gathered(self)
        return lazy_linear(input, self.weight, self.bias)


# Heads that have run, with the parameters they ran with: not those an optimizer sees, if FSDP shards the head
HEADS: weakref.WeakKeyDictionary[LazyHead, list[weakref.ref[Tensor]]] = weakref.WeakKeyDictionary()
# What was given to `patch`, per model in it
OUTERMOST: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()
KEPT: weakref.WeakSet[Any] = weakref.WeakSet()  # FSDP modules that would free the head before the loss and its readers


def patch(model: M) -> M:
    """Make cross-entropy of this model's logits fused: it runs the head on supervised positions only.

    `loss` and gradients of `model(..., labels=...)` are the unpatched model's, up to rounding, for causal, masked,
    pre-training and encoder-decoder heads alike; a batch without any supervised token gives 0 where torch gives NaN.
    `logits` in the output is a `LazyLogits`: a tensor that is computed, once, by what reads it first (`generate`,
    metrics, indexing, saving). A gradient with respect to the logits exists only if they were read before the loss.

    Args:
        model: a `transformers.PreTrainedModel` or a module around one (PEFT, DDP). Only this instance changes;
            patching twice changes nothing. Copies of a patched model are patched. FSDP2's `fully_shard` may come
            before or after.

    Returns:
        `model` itself.

    Raises:
        TypeError: there is no transformers model in `model`.
        ValueError: the model has no output embedding, or it is not a plain `nn.Linear`; the message names it.

    Later changes: a head replaced by `resize_token_embeddings` is patched at the next forward. A model whose loss
    does not come from the head's logits by cross-entropy is warned about once, by class name: its results are right,
    at the cost of an unpatched model. A compiled model runs the head and its loss outside the graph
    (fullgraph=True refuses that: `unpatch`). Under `torch.export` and `torch.func` logits are ordinary tensors.

    FSDP2: the module whose `fully_shard` covers the head keeps it gathered from forward to backward, or to the next
    optimizer step, as FSDP's root does. If that is a module around the transformers model (PEFT's), give it to `patch`.
    Logits that nothing has read before backward cannot be read after it: the gathered head is gone, and they say so.
    DDP with `find_unused_parameters=True` reads the logits of every forward; the loss is fused all the same.
    """
    owner = owner_of(model)
    OUTERMOST[owner] = weakref.ref(model)
    if HOOKS in vars(owner):
        return model
    reason = why_not(owner)
    if reason is not None:
        raise ValueError(f"cannot patch {type(owner).__name__}: {reason}; {ADVICE}")
    prepare()
    make_lazy(owner)
    hooks = (
        owner.register_forward_pre_hook(follow_head, with_kwargs=True),
        owner.register_forward_hook(report_unfused, with_kwargs=True),
    )
    setattr(owner, HOOKS, hooks)
    return model


def unpatch(model: M) -> M:
    """Undo `patch`, wherever in `model` it was done; a model that is not patched is left as it is."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    for module in model.modules():
        for hook in vars(module).pop(HOOKS, ()):
            hook.remove()
        if unsharded(type(module)) is LazyHead:
            for unit in [unit for unit in KEPT if any(m is module for m in unit.modules())]:
                free_after_forward(unit)
            module.__class__ = with_base(type(module), nn.Linear)
    return model


def owner_of(model: nn.Module) -> Any:
    """The outermost module that itself defines `get_output_embeddings`: the model inside PEFT's or DDP's wrapper."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    owner = next((m for m in modules if hasattr(type(m), "get_output_embeddings")), None)
    if owner is None:
        raise TypeError(f"model is a {type(model).__name__}; expected a transformers.PreTrainedModel, or one wrapped")
    return owner


def linears(head: Any) -> list[nn.Module]:
    """The modules one of which gives the logits: the head, or those PEFT's `ModulesToSaveWrapper` chooses from."""
    copies = getattr(head, "modules_to_save", None)
    return [head] if copies is None else [head.original_module, *copies.values()]


def why_not(owner: Any) -> str | None:
    """Why this model's head cannot be lazy, or None."""
    head = owner.get_output_embeddings()
    if head is None:
        return "it has no output embedding (get_output_embeddings() is None)"
    for linear in linears(head):
        if hasattr(linear, "base_layer") or hasattr(linear, "token_adapter"):
            return f"its output embedding carries a PEFT adapter ({type(linear).__qualname__}): take it off"
        if unsharded(type(linear)) not in (nn.Linear, LazyHead):
            return f"its output embedding is a {type(linear).__qualname__}, not a plain torch.nn.Linear"
        if "forward" in vars(linear):
            return "the forward of its output embedding was replaced (by accelerate's device_map or offload hooks?)"
    return None


def why_at_once(owner: Any) -> str | None:
    """Why this model's head, lazy as it is, gives ordinary logits, or None."""
    for linear in linears(owner.get_output_embeddings()):
        kind = type(linear.weight)
        if kind not in (Tensor, nn.Parameter):
            return f"the weight of its output embedding is a {kind.__qualname__} (of tensor parallelism, quantization?)"
    return None


def make_lazy(owner: Any) -> None:
    for linear in linears(owner.get_output_embeddings()):
        linear.__class__ = with_base(type(linear), LazyHead)


def follow_head(owner: Any, args: Any, kwargs: Any) -> None:
    """Forward pre-hook: the head may have been replaced, or sharded, since the last call."""
    if transforming() or why_not(owner) is not None:
        return
    make_lazy(owner)
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    outermost = OUTERMOST.get(owner, lambda: None)() or owner
    for head in linears(owner.get_output_embeddings()):
        around = [m for m in outermost.modules() if is_sharded(type(m)) and any(x is head for x in m.modules())]
        for unit in around[-1:]:  # the innermost is last, and holds the head's parameters
            keep_gathered(unit)


def report_unfused(owner: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook: given labels, the logits must still be unread when the model is done."""
    if transforming() or kwargs.get("labels") is None:
        return
    if not any(isinstance(x, LazyLogits) and not x.is_materialized for x in tree_leaves(output)):
        reason = why_not(owner) or why_at_once(owner)
        reason = reason or "its head was not called, or something other than cross-entropy read the logits"
        warn_once(f"the loss of {type(owner).__name__} is not fused: {reason}; {ADVICE}")


def is_sharded(cls: Any) -> bool:
    """Whether `fully_shard` made this class, of (FSDPModule, a module's own class). To import FSDP takes a second."""
    return hasattr(cls, "set_reshard_after_forward")


def unsharded(cls: Any) -> Any:
    return cls.__bases__[-1] if is_sharded(cls) else cls


def with_base(cls: Any, base: Any) -> Any:
    """`base`, sharded as `cls` is."""
    if unsharded(cls) is base:
        return cls
    if not is_sharded(cls):
        return base
    return type(f"FSDP{base.__name__}", (*cls.__bases__[:-1], base), {"__deepcopy__": vars(cls)["__deepcopy__"]})


def keep_gathered(unit: Any) -> None:
    """What an FSDP module frees after its forward, the loss and late readers of the logits would miss."""
    if frees_after_forward(unit):
        unit.set_reshard_after_forward(False, recurse=False)
        KEPT.add(unit)


def free_after_forward(unit: Any) -> None:
    """Undo `keep_gathered`."""
    KEPT.discard(unit)
    unit.set_reshard_after_forward(True, recurse=False)
    unit.reshard()


def frees_after_forward(unit: Any) -> bool:
    state = unit._get_fsdp_state()  # there is no public way to ask
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return any(group is not None and group._reshard_after_forward for group in groups)


@functools.cache
def warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@functools.cache
def prepare() -> None:
    """What the process needs once, at the first patch."""
    LazyLogits.hide_from_dynamo()
    LazyHead.forward = torch.compiler.disable(  # type: ignore[method-assign, no-untyped-call]
        LazyHead.forward,
        reason="fastft.patch: head and loss run outside the graph; for fullgraph=True call fastft.unpatch(model)",
    )
    register_optimizer_step_post_hook(count_step)


def count_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Fused optimizers write without counting a version, by which unread logits know that they are out of date.

    Of a sharded head the optimizer writes the shards: what was gathered from them before goes, and counts as written.
    In backward, where an optimizer may step too, a unit that still waits for its gradients needs what it has gathered.
    """
    if torch._C._current_graph_task_id() == -1:
        for unit in KEPT:
            unit.reshard()
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for head, seen in HEADS.items():
        for parameter, then in zip(head.parameters(recurse=False), seen, strict=False):
            x = then() if id(parameter) in stepped else None
            if x is not None and not x.is_inference():
                increment_version(x)
