"""Lazy logits as tensors: what is computed when, and that whoever reads them sees the real ones."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lazy_cases import FUSED, MASK, B, S, V, assert_same_gradients, both, inputs, labels
from torch import Tensor

from fastft.hf import LazyLogits
from fastft.hf.lazy_logits import lazy_linear
from fastft.losses import cross_entropy


def test_what_is_at_hand_costs_nothing() -> None:
    z = lazy_linear(*inputs(torch.float32))
    assert isinstance(z, torch.Tensor)
    assert torch.is_tensor(z)
    assert z.shape == z.size() == (B, S, V)
    assert (z.size(-1), len(z), z.dim(), z.ndim, z.numel()) == (V, B, 3, 3, B * S * V)
    assert (z.dtype, z.device.type, z.requires_grad, z.is_leaf) == (torch.float32, "cpu", True, False)
    assert z.grad_fn is not None
    assert z.is_floating_point()
    assert z in {z: 1}
    assert not z.is_cuda
    assert z.to(torch.float32) is z
    assert z.contiguous() is z
    assert not z.is_materialized
    assert z.materialize() is z.materialize()


READERS: dict[str, Callable[[Tensor], Any]] = {
    "index": lambda z: z[0, 0, 0].item(),
    "argmax": lambda z: z.argmax(-1).tolist(),
    "numpy": lambda z: z.detach().numpy().tolist(),
    "np.asarray": lambda z: np.asarray(z.detach()).tolist(),
    "cpu": lambda z: z.cpu().tolist(),
    "print": str,
    "format": lambda z: f"{z}",
    "tolist": lambda z: z.tolist(),
    "pickle": lambda z: pickle.loads(pickle.dumps(z)).tolist(),
    "copy": lambda z: copy.copy(z).tolist(),
    "list": lambda z: [row.tolist() for row in z],
    "bool": lambda z: bool((z > 0).any()),
    "data": lambda z: z.data.tolist(),
    "nested": lambda z: torch.stack([z, z]).tolist(),
    "no grad": torch.no_grad()(lambda z: (z.exp() * 2).tolist()),
}


@pytest.mark.parametrize("name", READERS)
def test_readers(name: str) -> None:
    (want, _), (got, _) = both(lambda z: z, torch.float32)
    assert READERS[name](got) == READERS[name](want)
    assert got.is_materialized


def test_nothing_outlives_the_logits() -> None:
    hidden, weight, bias = inputs()
    hidden = hidden * 1
    gone = weakref.ref(hidden)
    gc.disable()
    try:
        z = lazy_linear(hidden, weight, bias) * 2.0
        F.cross_entropy(z.view(-1, V), labels((B * S,))).backward()
        assert z.sum().requires_grad
        del z, hidden
        assert gone() is None
    finally:
        gc.enable()


def test_saved_as_a_plain_tensor() -> None:
    z = lazy_linear(*inputs())
    file = io.BytesIO()
    torch.save({"logits": z}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["logits"]
    assert type(loaded) is Tensor
    assert torch.equal(loaded, z)


def test_in_place_changes_count() -> None:
    def mask_classes(z: Tensor) -> Tensor:
        flat = z.view(-1, V)
        z[:, :, :2] = -9.0
        return flat

    def scaled_before(z: Tensor) -> Tensor:
        half = z / 2
        z[:, :, :2] = -9.0
        return half

    def through_a_view(z: Tensor) -> Tensor:
        z[:, 1:].clamp_(min=0)
        return z * 2

    def accumulated(z: Tensor) -> Tensor:
        z += 1.0
        z /= 3.0
        return z

    for op in (mask_classes, scaled_before, through_a_view, accumulated):
        results = both(op)
        assert torch.equal(results[0][0], results[1][0])
        y = labels((B * S,))
        assert_same_gradients([(F.cross_entropy(z.reshape(-1, V), y), x) for z, x in results])


def test_hooks_and_gradients_of_logits_read_before_the_loss() -> None:
    def gradient(z: Tensor) -> list[Tensor]:
        seen: list[Tensor] = []
        z.register_hook(seen.append)
        z.retain_grad()
        F.cross_entropy(z.view(-1, V), labels((B * S,))).backward()
        return [*seen, z.grad]  # type: ignore[list-item]

    for want, got in zip(*(gradient(z) for z, _ in both(lambda z: z)), strict=True):
        torch.testing.assert_close(got, want)


class Cube(torch.autograd.Function):
    """Its `apply` goes past `__torch_function__`, as C++ extensions do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad


@pytest.mark.parametrize("name", ["as it is", "softcap and scale", "bias", "shift", "masked positions"])
def test_functions_below_torch_function(name: str) -> None:
    assert_same_gradients([(Cube.apply(z), x) for z, x in both(FUSED[name])])


def test_grad_mode_of_the_model_counts() -> None:
    x = inputs()
    with torch.no_grad():
        z = lazy_linear(*x)
        assert not z.requires_grad
    assert not F.cross_entropy(z.view(-1, V), labels((B * S,))).requires_grad
    assert not z.exp().requires_grad
    z = lazy_linear(*x)
    with torch.no_grad():
        assert not cross_entropy(z, labels((B, S))).requires_grad
        half = z / 2
        assert not (z > 0).requires_grad
    assert not half.exp().requires_grad
    assert z.sum().requires_grad
    with torch.inference_mode():
        z = lazy_linear(*x)
        loss = F.cross_entropy(z.view(-1, V), labels((B * S,)))
        assert not z.is_materialized
    torch.testing.assert_close(loss.clone(), F.cross_entropy(z.clone().view(-1, V), labels((B * S,))))


@pytest.mark.parametrize("changed", range(3))
def test_changed_inputs_are_refused(changed: int) -> None:
    for change in (lambda x: x.mul_(2), lambda x: setattr(x, "data", x.data * 2)):
        x = inputs()
        z = lazy_linear(*x)
        with torch.no_grad():
            change(x[changed])
        with pytest.raises(RuntimeError, match=r"read them before.*or call fastft.unpatch"):
            z.sum()
        with pytest.raises(RuntimeError, match="left uncomputed"):
            F.cross_entropy(z.view(-1, V), labels((B * S,)))


def test_reused_index_is_no_change() -> None:
    mask = MASK.clone()
    picked = lazy_linear(*inputs())[mask]
    mask.zero_()
    assert torch.equal(picked, F.linear(*inputs())[MASK])


@pytest.mark.parametrize("outer", [True, False])
def test_autocast(outer: bool) -> None:
    """The head's autocast is the one it was called under, also where the loss is taken outside."""
    hidden, weight, bias = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        want = F.linear(hidden, weight, bias)
        got = lazy_linear(hidden, weight, bias)
        fused = F.cross_entropy(got.view(-1, V), labels((B * S,))) if outer else None
    if fused is None:
        fused = F.cross_entropy(got.view(-1, V), labels((B * S,)))
    assert got.dtype == torch.bfloat16
    assert not got.is_materialized
    torch.testing.assert_close(fused, F.cross_entropy(want.float().view(-1, V), labels((B * S,))), rtol=1e-2, atol=0)
    fused.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert torch.equal(got, want)


def test_ordinary_tensors_where_laziness_has_no_use() -> None:
    hidden, weight, bias = inputs()
    assert type(lazy_linear(hidden.to("meta"), weight.to("meta"), None)) is Tensor
    assert not isinstance(torch.func.vmap(lambda h: lazy_linear(h, weight, bias))(hidden), LazyLogits)
    grad = torch.func.grad(lambda h: lazy_linear(h, weight, bias).square().sum())(hidden)
    torch.testing.assert_close(grad, 2 * F.linear(hidden, weight, bias) @ weight)
    compiled = torch.compile(lazy_linear, backend="eager", fullgraph=True)
    assert type(compiled(hidden, weight, bias)) is Tensor
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        lazy_linear(hidden, weight[:, :-1], bias)
    with pytest.raises(RuntimeError, match="dtype"):
        lazy_linear(hidden.float(), weight, bias)
