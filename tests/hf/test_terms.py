"""What is done to lazy logits, and every option of the loss, against the same on real ones."""

from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lazy_cases import FUSED, MATERIALIZED, B, D, S, V, assert_same_gradients, both, inputs, labels
from torch import Tensor

from fastft.hf import LazyLogits
from fastft.hf.lazy_logits import lazy_linear
from fastft.losses import cross_entropy


@pytest.mark.parametrize("name", FUSED)
def test_fused_calls(name: str) -> None:
    (want, _), (got, _) = both(FUSED[name])
    assert type(got) is LazyLogits
    assert not got.is_materialized
    assert (got.shape, got.stride(), got.dtype, got.requires_grad) == (want.shape, want.stride(), want.dtype, True)
    y = labels(want.shape[:-1], want.shape[-1])
    results = both(FUSED[name])
    lazy = results[1][0]
    assert_same_gradients(
        [(F.cross_entropy(z.reshape(-1, z.shape[-1]), y.view(-1), reduction="sum"), x) for z, x in results]
    )
    assert not lazy.is_materialized
    assert torch.equal(got, want)
    assert got.is_materialized


@pytest.mark.parametrize("name", MATERIALIZED)
def test_other_calls_give_real_tensors(name: str) -> None:
    results = both(MATERIALIZED[name])
    assert type(results[1][0]) is Tensor
    assert torch.equal(results[0][0], results[1][0])
    if results[0][0].requires_grad:
        assert_same_gradients([(z.square().sum(), x) for z, x in results])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(FUSED.keys() - {"nothing left"}) + sorted(MATERIALIZED)[:6]), max_size=5))
def test_chains_of_calls(names: list[str]) -> None:
    """Whatever the order, and whether or not it stays lazy, the loss is that of the real logits."""

    def chain(z: Tensor) -> Tensor:
        return reduce(lambda z, name: {**FUSED, **MATERIALIZED}[name](z), names, z)

    try:
        want = chain(F.linear(*inputs()))
    except (RuntimeError, IndexError) as error:  # a bias that does not fit, a view of a slice, ...
        with pytest.raises(type(error)):
            chain(lazy_linear(*inputs())).sum()
        return
    if want.dim() < 2:
        return
    y = labels(want.shape[:-1], want.shape[-1]).reshape(-1)
    if not (y >= 0).any():
        return
    assert_same_gradients([(F.cross_entropy(z.reshape(-1, z.shape[-1]), y), x) for z, x in both(chain)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ignore_index": 2},
        {"reduction": "none"},
        {"label_smoothing": 0.2},
        {"weight": torch.arange(1.0, V + 1).double()},
    ],
    ids=str,
)
def test_options_of_torch(options: dict[str, Any]) -> None:
    y = labels((B * S,)) if "ignore_index" not in options else labels((B * S,)).clamp(min=0)
    results = both(lambda z: z.view(-1, V))
    assert_same_gradients([(F.cross_entropy(z, y, **options), x) for z, x in results])
    assert not results[1][0].is_materialized
    module = torch.nn.CrossEntropyLoss(**options)
    results = both(lambda z: z.view(-1, V))
    assert_same_gradients([(module(z, y), x) for z, x in results])
    assert not results[1][0].is_materialized


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_items": 4.0, "token_weight": torch.linspace(0, 2, B * S).view(B, S)},
        {"logit_scale": 0.5},
        {"softcap": 2.0},
        {"logit_scale": 0.5, "softcap": 2.0, "z_loss": 1e-2},
        {"reduction": "none", "label_smoothing": 0.1},
        {"weight": torch.arange(1.0, V + 1).double()},
    ],
    ids=str,
)
@pytest.mark.parametrize("op", ["as it is", "scale", "bias"])
def test_options_of_fastft(op: str, options: dict[str, Any]) -> None:
    results = both(FUSED[op])
    assert_same_gradients([(cross_entropy(z, labels((B, S)), **options), x) for z, x in results])
    assert not results[1][0].is_materialized


def test_an_added_bias_learns() -> None:
    """As a parameter, ESM's for one, and on top of the head's own."""
    y = labels((B * S,))
    biases = []
    for z, _ in both(lambda z: z):
        extra = torch.linspace(-1, 1, V, dtype=torch.float64).requires_grad_()
        F.cross_entropy((z + extra).view(-1, V), y).backward()
        assert not isinstance(z, LazyLogits) or not z.is_materialized
        biases.append(extra.grad)
    torch.testing.assert_close(biases[1], biases[0])


def test_statistics_and_a_second_softcap() -> None:
    (want, _), (got, _) = both(FUSED["softcap"])
    want_loss, want_stats = cross_entropy(want, labels((B, S)), return_stats=True)
    loss, stats = cross_entropy(got, labels((B, S)), return_stats=True)
    torch.testing.assert_close(loss, want_loss)
    for a, b in zip(stats, want_stats, strict=True):
        torch.testing.assert_close(a, b)
    assert not got.is_materialized
    torch.testing.assert_close(
        cross_entropy(got, labels((B, S)), softcap=1.5), cross_entropy(want, labels((B, S)), softcap=1.5)
    )
    assert got.is_materialized


def test_targets_that_only_real_logits_take() -> None:
    probabilities = torch.full((B * S, V), 1.0 / V, dtype=torch.float64)
    results = both(lambda z: z.view(-1, V))
    assert_same_gradients([(F.cross_entropy(z, probabilities), x) for z, x in results])
    results = both(lambda z: z.transpose(1, 2))
    assert_same_gradients([(F.cross_entropy(z, labels((B, S))), x) for z, x in results])
    results = both(lambda z: z.view(-1, V))
    assert_same_gradients([(F.cross_entropy(z, labels((B * S,)).clamp(min=0).byte()), x) for z, x in results])
    z = lazy_linear(*inputs())
    with pytest.raises(ValueError, match="batch_size"):
        F.cross_entropy(z.view(-1, V), labels((B,)))
    square = lazy_linear(torch.randn(2, V, D), torch.randn(V, D), None)  # also torch's (N, C, d1)
    y = labels((2, V))
    assert F.cross_entropy(square, y) == F.cross_entropy(square.materialize(), y)
    square = lazy_linear(torch.randn(2, V, D), torch.randn(V, D), None)
    assert cross_entropy(square, y) == cross_entropy(square.materialize(), y)
