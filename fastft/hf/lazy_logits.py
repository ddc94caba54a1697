"""Logits that are not computed until something reads them.

A model applies its head to every position and then hands the logits to `F.cross_entropy`, with little in
between. `LazyLogits` stands for the logits, holds no memory, and remembers what was done to them; cross-entropy
then runs `linear_cross_entropy` on the supervised rows only. Whatever else reads them gets the logits that
the head and the remembered calls give, computed once, with their gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastft.hf.terms import RULES, Terms
from fastft.losses.cross_entropy import cross_entropy

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class LazyLogits(Tensor):
    """A tensor without storage that stands for logits; made by `lazy_linear`, never constructed.

    Shape, dtype, device and `requires_grad` are at hand. What `terms.RULES` lists gives further lazy logits;
    cross-entropy, torch's and fastft's, of them is fused. Any other operation runs on the real logits, and so does
    every later one, so that hooks and in-place changes count.

    Raises:
        RuntimeError: they are first read after hidden states or head have changed, as by `optimizer.step()`.
    """

    _call: Call  # what makes the real logits
    _terms: Terms  # the same as the fused loss sees it
    _like: Tensor  # a meta tensor with the real logits' shape, strides and dtype
    _stamps: list[tuple[Tensor, tuple[int, int]]]
    _real: Tensor | None
    _listeners: list[Callable[[Tensor], Any]]  # hooks that want to know when backward comes here, and no more

    @property
    def is_materialized(self) -> bool:
        """Whether the real logits, these or those they were derived from, have been computed."""
        return any(node._real is not None for node in self._lineage())

    def materialize(self) -> Tensor:
        """The real logits, exactly as the unpatched head gives them; computed at the first call."""
        if self._real is None:
            self._real = self._replay(LazyLogits.materialize)
            source = None if self._parent is None else self._parent.materialize()
            if source is not None and version(source) and storage(source) != storage(self._real):
                self._real = self._recompute()  # a copy of logits that were changed in place after it was taken
        return self._real

    def _recompute(self) -> Tensor:
        return self._replay(LazyLogits._recompute)

    def _replay(self, real_of: Callable[[LazyLogits], Tensor]) -> Tensor:
        self._check_unchanged()
        func, args, kwargs = replaced(self._call, LazyLogits, real_of)
        with torch.set_grad_enabled(self.requires_grad):
            real: Tensor = func(*args, **kwargs)
        return heard(real, self._listeners)

    @property
    def _parent(self) -> LazyLogits | None:
        first = self._call[1][0]
        return first if isinstance(first, LazyLogits) else None

    def _lineage(self) -> list[LazyLogits]:
        """These logits, those they were derived from, and so on to the head's."""
        return [self] if self._parent is None else [self, *self._parent._lineage()]

    def _check_unchanged(self) -> None:
        if any(stamp(tensor) != then for tensor, then in self._stamps):
            raise RuntimeError(
                "these logits were left uncomputed, and the hidden states or the head they come from have changed "
                "since (by optimizer.step()? by FSDP, which gives a gathered head back in backward?): read them before "
                "the change, or call fastft.unpatch(model)"
            )

    def _loss(self, target: Any, **options: Any) -> Any:
        """The fused loss, or NotImplemented where only the real logits will do."""
        indices = isinstance(target, Tensor) and target.dtype == torch.int64
        if not indices or target.shape != self.shape[:-1] or self.is_materialized:
            return NotImplemented
        for node in self._lineage():
            node._check_unchanged()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.requires_grad):
            result = self._terms.loss(target, **options)
        loss = result[0] if isinstance(result, tuple) else result
        heard(loss, [listener for node in self._lineage() for listener in node._listeners])
        return result

    def _register_hook(self, hook: Callable[[Tensor], Any]) -> Any:
        """For FSDP's hooks, which gather a head before its backward, be that the fused loss's or the logits' own."""
        if self.is_materialized or not str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp"):
            return NotImplemented
        self._listeners.append(hook)
        with torch._C.DisableTorchFunctionSubclass():
            return self.register_hook(hook)  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        result = NotImplemented
        if func in LOSSES:
            result = LOSSES[func](*args, **kwargs)
        elif func in RULES:
            result = derived(func, args, kwargs)
        elif func is Tensor.register_hook:
            result = args[0]._register_hook(*args[1:], **kwargs)
        if result is NotImplemented:
            args, kwargs = replaced((args, kwargs), LazyLogits, LazyLogits.materialize)
            result = func(*args, **kwargs)
        return result

    @classmethod
    def hide_from_dynamo(cls) -> None:
        """Make compiled functions that are given lazy logits call this class, not trace it. Imports Dynamo: seconds."""
        opaque = torch.compiler.disable(vars(cls)["__torch_function__"].__func__)  # type: ignore[no-untyped-call]
        cls.__torch_function__ = classmethod(opaque)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """For code below `__torch_function__` (C++ extensions): values only, autograd is `Node`'s."""
        args, kwargs = replaced((args, kwargs or {}), LazyLogits, value)
        return func(*args, **kwargs)


class Node(torch.autograd.Function):
    """Gives lazy logits their place in the graph, for what goes past `__torch_function__`, as `Function.apply` does."""

    @staticmethod
    def forward(ctx: Any, call: Call, terms: Terms, like: Tensor, *inputs: Tensor) -> LazyLogits:
        ctx.call, ctx.inputs = call, inputs
        lazy: LazyLogits = Tensor._make_wrapper_subclass(
            LazyLogits, like.shape, strides=like.stride(), dtype=like.dtype, device=terms.hidden.device
        )
        lazy._call, lazy._terms, lazy._like, lazy._real, lazy._listeners = call, terms, like, None, []
        lazy._stamps = [(x, stamp(x)) for x in inputs if not isinstance(x, LazyLogits)]
        return lazy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in ctx.inputs]
        leaf_of = dict(zip(map(id, ctx.inputs), leaves, strict=True))
        func, args, kwargs = replaced(ctx.call, Tensor, lambda x: leaf_of[id(x)])
        with torch.enable_grad():
            func(*args, **kwargs).backward(grad)
        return None, None, None, *(x.grad for x in leaves)


def replaced(x: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """`x` with every `kind` in it, also in lists, tuples and dicts, put through `by`. (torch's tree_map: 5x slower.)"""
    if isinstance(x, kind):
        return by(x)
    if isinstance(x, (tuple, list)):
        return (tuple if isinstance(x, tuple) else list)(replaced(item, kind, by) for item in x)
    return {key: replaced(item, kind, by) for key, item in x.items()} if isinstance(x, dict) else x


def heard(x: Tensor, listeners: list[Callable[[Tensor], Any]]) -> Tensor:
    """`x`, with the listeners told when its gradient comes."""
    if x.requires_grad:
        for listener in listeners:
            x.register_hook(listener)  # type: ignore[no-untyped-call]
    return x


def value(logits: LazyLogits) -> Tensor:
    """The real logits without a gradient, and not kept: autograd cannot be recorded where this is called."""
    return (logits._recompute() if logits._real is None else logits._real).detach()


def version(x: Tensor) -> int:
    """How often `x` was changed in place."""
    return 0 if x.is_inference() else x._version


def storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def stamp(x: Tensor) -> tuple[int, int]:
    """Changes when `x` is written to, or its memory is replaced or given back."""
    return version(x), x.data_ptr()


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, autocast: torch.dtype | None) -> Tensor:
    with torch.autocast(hidden.device.type, autocast, enabled=autocast is not None):
        return F.linear(hidden, weight, bias)


def transforming() -> bool:
    """Under `torch.compile`, export, tracing and `torch.func` transforms, which want to see ordinary tensors."""
    compiling = torch.compiler.is_compiling()
    return compiling or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()


def lazy_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(hidden, weight, bias)` as `LazyLogits`: hidden (..., D), weight (V, D), bias (V,) -> (..., V).

    Computed at once while `transforming`, for tensor subclasses (DTensor, fake and quantised tensors), and where torch
    is going to refuse the inputs.
    """
    if transforming():
        return F.linear(hidden, weight, bias)
    tensors = [hidden, weight] if bias is None else [hidden, weight, bias]
    dtypes = {x.dtype for x in tensors}
    if (
        any(type(x) not in (Tensor, torch.nn.Parameter) or x.device != hidden.device for x in tensors)
        or hidden.is_meta
        or hidden.shape[-1:] != weight.shape[1:]
        or not all(dtype.is_floating_point for dtype in dtypes)
    ):
        return F.linear(hidden, weight, bias)
    device = hidden.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if (torch.float64 in dtypes) if autocast else (len(dtypes) > 1):
        return F.linear(hidden, weight, bias)
    like = torch.empty(*hidden.shape[:-1], len(weight), dtype=autocast or hidden.dtype, device="meta")
    return record((linear, (hidden, weight, bias, autocast), {}), Terms(hidden, weight, bias, autocast), like)


def record(call: Call, terms: Terms, like: Tensor) -> Tensor:
    inputs: list[Tensor] = []
    replaced(call, Tensor, inputs.append)
    lazy: Tensor = Node.apply(call, terms, like, *inputs)  # type: ignore[no-untyped-call]
    return lazy


def derived(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Lazy logits for `func(*args, **kwargs)`, or NotImplemented where there is no rule for these arguments."""
    logits, *rest = args
    if not isinstance(logits, LazyLogits) or logits.is_materialized or (kwargs and func is not Tensor.to):
        return NotImplemented
    result = RULES[func](logits._terms, logits._like, *rest, **kwargs)
    if result is None:
        return NotImplemented
    terms, like = result
    if like is logits._like:
        return logits
    args = replaced(args, Tensor, lambda x: x if x.is_floating_point() else x.clone())  # an index may be reused
    return record((func, args, kwargs), terms, like)


def torch_cross_entropy(
    input: Any, target: Any, weight: Tensor | None = None, size_average: Any = None, ignore_index: int = -100,
    reduce: Any = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    """`F.cross_entropy` of lazy logits (V,) or (N, V); its (N, C, d1, ...) form has classes in another place."""
    if not isinstance(input, LazyLogits) or input.dim() > 2 or size_average is not None or reduce is not None:
        return NotImplemented
    return input._loss(
        target, weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def fastft_cross_entropy(
    input: LazyLogits, target: Any, weight: Tensor | None = None, *, softcap: float | None = None,
    logit_scale: float = 1.0, **options: Any,
) -> Any:  # fmt: skip
    """`fastft.losses.cross_entropy` of lazy logits (..., V), with its transform on top of the model's own."""
    channels_second = isinstance(target, Tensor) and (input.shape[0], *input.shape[2:]) == target.shape
    if input.is_materialized or (input.dim() > 2 and channels_second):  # torch's (N, C, d1, ...) goes first
        return NotImplemented
    z = input if logit_scale == 1.0 else input * logit_scale
    if softcap is not None:
        z = torch.tanh(z / softcap) * softcap
    return z._loss(target, weight=weight, **options) if isinstance(z, LazyLogits) else NotImplemented


def logit_rows(logits: Tensor, index: Tensor) -> Tensor:
    """`logits[index]`, (m, V), of logits (N, V); of lazy logits no other rows are made, and those are not kept."""
    rows = logits[index]
    if not isinstance(rows, LazyLogits):
        return rows
    rows._check_unchanged()
    terms = rows._terms  # reading `rows` would run the whole head before it takes these
    z = linear(terms.hidden, terms.weight, terms.bias, terms.autocast)
    z = z if terms.scale == 1.0 else z * terms.scale
    return z if terms.amplitude is None else terms.amplitude * torch.tanh(z)


LOSSES: dict[Any, Callable[..., Any]] = {F.cross_entropy: torch_cross_entropy, cross_entropy: fastft_cross_entropy}

ATTRIBUTES = (
    "shape dtype device layout ndim itemsize nbytes requires_grad is_leaf grad_fn _base "
    "is_cpu is_cuda is_meta is_mps is_xpu is_quantized is_sparse is_nested"
)
METHODS = (
    "size dim ndimension numel nelement stride is_contiguous element_size get_device "
    "is_floating_point is_complex is_inference __len__ __hash__"
)
METADATA = {
    *(getattr(Tensor, name).__get__ for name in ATTRIBUTES.split()),
    *(getattr(Tensor, name) for name in METHODS.split()),
    *(torch.numel, torch.is_floating_point, torch.is_complex),
}
