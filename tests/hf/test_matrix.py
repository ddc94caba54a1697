"""Every kind of head: loss and every gradient of the patched model are the unpatched model's, and were fused."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import MODELS, SEQ2SEQ, model_and_batch

import fastft.hf.terms
from fastft.hf import LazyLogits, patch

pytestmark = pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")  # EncoderDecoderModel, at each loss


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of positions that each call of `linear_cross_entropy` was given."""
    calls: list[int] = []
    original = fastft.hf.terms.linear_cross_entropy

    def count(hidden: Any, weight: Any, target: Any, /, **options: Any) -> Any:
        calls.append(target.numel())
        return original(hidden, weight, target, **options)

    monkeypatch.setattr(fastft.hf.terms, "linear_cross_entropy", count)
    return calls


@pytest.fixture
def never_materialized(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("the logits were materialized")

    monkeypatch.setattr(LazyLogits, "_replay", fail)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients(name: str, fused: list[int], never_materialized: None) -> None:
    model, batch = model_and_batch(name)
    patched = patch(copy.deepcopy(model))
    want, got = model(**batch), patched(**batch)
    assert len(fused) == 1
    logits = got.prediction_logits if name == "bert_pretraining" else got.logits
    assert type(logits) is LazyLogits
    torch.testing.assert_close(got.loss, want.loss, rtol=1e-6, atol=0)
    wanted = gradients(model, want.loss)
    largest = max(g.abs().max() for g in wanted.values())
    grads = gradients(patched, got.loss)
    assert grads.keys() == wanted.keys()
    for key, g in grads.items():
        torch.testing.assert_close(
            g, wanted[key], rtol=1e-5, atol=1e-6 * float(largest), msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_unpatched_ones(name: str) -> None:
    model, batch = model_and_batch(name)
    want = model(**batch).to_tuple()[1]
    got = patch(model)(**batch).to_tuple()[1]
    assert (got.shape, got.dtype, got.device) == (want.shape, want.dtype, want.device)
    assert got.stride() == want.stride()
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"bert_pretraining"}))
def test_num_items_in_batch(name: str, fused: list[int]) -> None:
    """transformers.Trainer's normalisation: a sum divided by the count, where the model supports it."""
    model, batch = model_and_batch(name)
    want = model(**batch, num_items_in_batch=torch.tensor(50)).loss
    got = patch(model)(**batch, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    assert fused


def test_shift_labels(fused: list[int]) -> None:
    model, batch = model_and_batch("llama")
    shifted = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    want = model(**batch, shift_labels=shifted).loss
    torch.testing.assert_close(patch(model)(**batch, shift_labels=shifted).loss, want)
    assert fused


def test_no_supervised_token_is_a_connected_zero() -> None:
    for name in ("bert", "llama", "t5"):
        model, batch = model_and_batch(name)
        batch["labels"] = torch.full_like(batch["labels"], -100)
        loss = patch(model)(**batch).loss
        assert loss == 0
        assert all(not g.any() for g in gradients(model, loss).values())


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoder_generates_the_same(name: str) -> None:
    model, batch = model_and_batch(name)
    inputs = {"input_ids": batch["input_ids"], "max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    want = model.eval().generate(**inputs)
    assert torch.equal(patch(model).generate(**inputs), want)
