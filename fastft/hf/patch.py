"""Switch lazy logits on and off for one model.

The output embedding's class becomes `LazyHead`, so the model copies, moves, saves and prints as before; hooks on
the model follow a head that `resize_token_embeddings` replaces, and say so when a loss was not fused.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils._pytree import tree_leaves

from fastft.hf.lazy_logits import LazyLogits, lazy_linear, transforming

HOOKS = "_fastft_hooks"  # the patched model's attribute that holds its hooks
ADVICE = "to fuse such a loss by hand, give its hidden states to fastft.losses.linear_cross_entropy"

M = TypeVar("M", bound=nn.Module)


class LazyHead(nn.Linear):
    """A model's own `nn.Linear` whose result is `LazyLogits`; `patch` makes it, nobody constructs it."""

    def forward(self, input: Tensor) -> Tensor:
        if not transforming():
            HEADS.add(self)
        return lazy_linear(input, self.weight, self.bias)


HEADS: weakref.WeakSet[LazyHead] = weakref.WeakSet()  # those that have run


def patch(model: M) -> M:
    """Make cross-entropy of this model's logits fused: it runs the head on supervised positions only.

    `loss` and gradients of `model(..., labels=...)` are the unpatched model's, up to rounding, for causal, masked,
    pre-training and encoder-decoder heads alike; a batch without any supervised token gives 0 where torch gives NaN.
    `logits` in the output is a `LazyLogits`: a tensor that is computed, once, by what reads it first (`generate`,
    metrics, indexing, saving). A gradient with respect to the logits exists only if they were read before the loss.

    Args:
        model: a `transformers.PreTrainedModel` or a module around one (PEFT, DDP). Only this instance changes;
            patching twice changes nothing. Copies of a patched model are patched.

    Returns:
        `model` itself.

    Raises:
        TypeError: there is no transformers model in `model`.
        ValueError: the model has no output embedding, or it is not a plain `nn.Linear`; the message names it.

    Later changes: a head replaced by `resize_token_embeddings` is patched at the next forward. A model whose loss
    does not come from the head's logits by cross-entropy is warned about once, by class name: its results are right,
    at the cost of an unpatched model. Under `torch.compile` and `torch.func` the logits are ordinary tensors.
    """
    owner = owner_of(model)
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
        if type(module) is LazyHead:
            module.__class__ = nn.Linear  # type: ignore[assignment]
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
        if type(linear) not in (nn.Linear, LazyHead):
            return f"its output embedding is a {type(linear).__qualname__}, not a plain torch.nn.Linear"
        if "forward" in vars(linear):
            return "the forward of its output embedding was replaced (by accelerate's device_map or offload hooks?)"
    return None


def make_lazy(owner: Any) -> None:
    for linear in linears(owner.get_output_embeddings()):
        linear.__class__ = LazyHead


def follow_head(owner: Any, args: Any, kwargs: Any) -> None:
    """Forward pre-hook: the head may have been replaced since the last call."""
    if not transforming() and why_not(owner) is None:
        make_lazy(owner)


def report_unfused(owner: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook: given labels, the logits must still be unread when the model is done."""
    if transforming() or kwargs.get("labels") is None:
        return
    if not any(isinstance(x, LazyLogits) and not x.is_materialized for x in tree_leaves(output)):
        reason = why_not(owner) or "its head was not called, or something other than cross-entropy read the logits"
        warn_once(f"the loss of {type(owner).__name__} is not fused: {reason}; {ADVICE}")


@functools.cache
def warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@functools.cache
def prepare() -> None:
    """What the process needs once, at the first patch."""
    LazyLogits.hide_from_dynamo()
    register_optimizer_step_post_hook(count_step)


def count_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Fused optimizers write without counting a version, by which unread logits know that they are out of date."""
    heads = {id(weight) for head in HEADS for weight in head.parameters()}
    increment_version([p for group in optimizer.param_groups for p in group["params"] if id(p) in heads])
