"""return_stats: per-token nll, lse, correct and entropy against plain torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastft.losses import LossStats, cross_entropy, linear_cross_entropy
from losses.cases import OPTIONS, REDUCTIONS, problem, with_ignored

TRANSFORMS = ["plain", "softcap", "negative_scale", "scale_and_softcap", "everything"]


def expected_stats(logits: Tensor, y: Tensor, options: dict[str, Any]) -> LossStats:
    z = options.get("logit_scale", 1.0) * logits.double()
    if softcap := options.get("softcap"):
        z = softcap * torch.tanh(z / softcap)
    keep = y != options.get("ignore_index", -100)
    if "token_weight" in options:
        keep &= options["token_weight"] != 0
    logp = z.log_softmax(-1)
    index = y.clamp(0, z.shape[-1] - 1)[..., None]
    columns = -logp.gather(-1, index)[..., 0], z.logsumexp(-1), z.argmax(-1) == y, -(logp.exp() * logp).sum(-1)
    return LossStats(*(torch.where(keep, column, 0) for column in columns))


@pytest.mark.parametrize("option", TRANSFORMS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("budget", [None, 700])
@pytest.mark.parametrize("grad", [False, True])
def test_against_torch(option: str, reduction: str, budget: int | None, grad: bool, backend: str) -> None:
    p = problem(24, 19, 37, share=0.4)
    options = {**OPTIONS[option](p), "reduction": reduction, "backend": backend, "return_stats": True}
    x, y = p.x.requires_grad_(grad), with_ignored(p.y, options)
    logits = (p.x @ p.w.t()).detach()
    expected = expected_stats(logits, y, options)
    pairs = [
        cross_entropy(logits.requires_grad_(grad), y, **options),
        linear_cross_entropy(x, p.w, y, memory_budget=budget, **options),
    ]
    del options["return_stats"]
    alone = [
        cross_entropy(logits, y, **options), linear_cross_entropy(x, p.w, y, memory_budget=budget, **options),
    ]  # fmt: skip
    for (loss, stats), without in zip(pairs, alone, strict=True):
        assert torch.equal(loss, without), "asking for statistics changed the loss"
        assert isinstance(stats, LossStats)
        assert not any(column.requires_grad for column in stats)
        assert stats.correct.dtype == torch.bool
        assert torch.equal(stats.correct, expected.correct.bool())
        for name in ("nll", "lse", "entropy"):
            torch.testing.assert_close(
                getattr(stats, name).double(), getattr(expected, name), rtol=1e-5, atol=1e-5, msg=name
            )
        if grad:
            loss.sum().backward()


@pytest.mark.parametrize("shape", [(), (6,), (2, 3)], ids=str)
def test_shaped_like_the_target(shape: tuple[int, ...], backend: str) -> None:
    p = problem(torch.Size(shape).numel(), 19, 37)
    y = p.y.reshape(shape)
    for _, stats in (
        cross_entropy(p.z.reshape(*shape, 37), y, return_stats=True, backend=backend),
        linear_cross_entropy(p.x.reshape(*shape, 19), p.w, y, return_stats=True, backend=backend),
    ):
        assert all(column.shape == shape for column in stats)


def test_torchs_shape(backend: str) -> None:
    p = problem(6, 19, 37)
    z = p.z.reshape(2, 3, 37)
    _, stats = cross_entropy(z.movedim(-1, 1), p.y.reshape(2, 3), return_stats=True, backend=backend)
    _, flat = cross_entropy(p.z, p.y, return_stats=True, backend=backend)
    for a, b in zip(stats, flat, strict=True):
        assert torch.equal(a.reshape(-1), b)


@pytest.mark.parametrize("vocab", [1, 2, 37, 2048, 4099])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_first_of_equal_logits_is_the_prediction(
    vocab: int, dtype: torch.dtype, backend: str, takes: Callable[..., None]
) -> None:
    """As argmax has it: of equal maxima only the first class counts as predicted."""
    takes(dtype)
    z = torch.zeros(8, vocab, dtype=dtype)
    targets = torch.linspace(0, vocab - 1, 8).long()
    _, stats = cross_entropy(z, targets, return_stats=True, backend=backend)
    assert torch.equal(stats.correct, targets == 0)
    z[:, vocab // 2 :: 3] = 2
    _, stats = cross_entropy(z, torch.full((8,), vocab // 2), return_stats=True, backend=backend)
    assert stats.correct.all()
    if vocab > vocab // 2 + 3:
        _, stats = cross_entropy(z, torch.full((8,), vocab // 2 + 3), return_stats=True, backend=backend)
        assert not stats.correct.any()


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 300.0])
def test_entropy_between_0_and_log_v(spread: float, backend: str) -> None:
    p = problem(16, 1, 3001, spread=spread)
    _, stats = cross_entropy(p.z, p.y, return_stats=True, backend=backend)
    expected = torch.special.entr(p.z.double().softmax(1)).sum(1)
    torch.testing.assert_close(stats.entropy.double(), expected, rtol=1e-5, atol=1e-5)


def test_masked_vocabulary(backend: str) -> None:
    """-inf logits take no part in the entropy, and no statistic becomes NaN."""
    p = problem(8, 1, 5000)
    z = p.z.masked_fill(torch.arange(5000) % 3 == 1, -torch.inf)
    z[0, 1:] = -torch.inf
    y = p.y // 3 * 3
    y[0] = 0
    _, stats = cross_entropy(z, y, return_stats=True, backend=backend)
    logp = z.double().log_softmax(1)
    torch.testing.assert_close(stats.nll.double(), -logp.gather(1, y[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.entropy.double(), torch.special.entr(logp.exp()).sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(stats.correct, z.argmax(1) == y)


def test_nothing_supervised(backend: str) -> None:
    p = problem(4, 19, 37, share=1.0)
    for _, stats in (
        cross_entropy(torch.full_like(p.z, torch.nan), p.y, return_stats=True, backend=backend),
        linear_cross_entropy(torch.full_like(p.x, torch.nan), p.w, p.y, return_stats=True, backend=backend),
    ):
        assert all((column == 0).all() for column in stats)
