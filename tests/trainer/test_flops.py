from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from fastft import patch
from fastft.data.batch import IGNORE_INDEX, Batch, Piece, Target, blank, lay_out
from fastft.trainer.gradient import totals, window_gradient
from fastft.trainer.reporting import flops as module
from fastft.trainer.reporting.flops import Flops, matmul_rate

VOCAB, D = 96, 32
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "attn_implementation": "eager",
}  # fmt: skip


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SMALL))


def mistral(window: int) -> Any:
    return MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=window, **SMALL))


def bert() -> Any:
    return BertForPreTraining(BertConfig(**SMALL))


def gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=4, n_positions=64, attn_implementation="eager")
    )


def t5() -> Any:
    """Heads wider than D / 4, and three decoder layers on two encoder layers."""
    size = {"d_model": D, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, attn_implementation="eager", **size))


def batch_of(model: Any, samples: int = 3, tokens: int = 20, learned: int | None = None) -> Batch:
    """Samples of one length, with the first `learned` positions learned; a T5's have half as many tokens behind."""
    ids = torch.randint(VOCAB, (samples, tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs |= {f"decoder_{name}": value[:, : tokens // 2] for name, value in inputs.items()}
        ids = ids[:, : tokens // 2]
    labels = ids.clone()
    labels[:, ids.shape[1] if learned is None else learned :] = IGNORE_INDEX
    targets = [Target("logits", labels, (labels >= 0).float())]
    if isinstance(model, BertForPreTraining):
        relation = Target("seq_relationship_logits", torch.zeros(samples, dtype=torch.int64), torch.ones(samples))
        targets = [Target("prediction_logits", labels, targets[0].weights), relation]
    return Batch(inputs, tuple(targets), samples * tokens + inputs.get("decoder_input_ids", ids[:, :0]).numel())


def counted(model: Any, batch: Batch) -> float:
    """What torch sees go by, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        losses = [
            torch.nn.functional.cross_entropy(getattr(outputs, t.output).flatten(0, -2), t.labels.flatten())
            for outputs in [model(**batch.inputs)]
            for t in batch.targets
        ]
        torch.stack(losses).sum().backward()
    return float(counter.get_total_flops())


def causal_half(layers: int, width: int, samples: int, tokens: int) -> float:
    """What eager attention computes for the masked half, forward and backward."""
    return 3 * 4 * layers * width * samples * tokens**2 / 2


@pytest.mark.parametrize(
    ("make", "masked"),
    [(llama, causal_half(2, D, 3, 20)), (gpt2, causal_half(2, D, 3, 20)), (bert, 0), (t5, causal_half(3, 48, 3, 10))],
)
def test_agrees_with_torchs_counter(make: Callable[[], Any], masked: float) -> None:
    torch.manual_seed(0)
    model = make()
    batch = batch_of(model)
    expected = counted(model, batch)
    assert masked < 0.1 * expected
    assert Flops(model, torch.float32).of([batch]) == pytest.approx(expected - masked, rel=1e-9)


@pytest.mark.parametrize("patched", [True, False])
def test_the_head_counts_where_something_is_learned(patched: bool) -> None:
    torch.manual_seed(0)
    model = patch(llama()) if patched else llama()
    flops = Flops(model, torch.float32)
    some, every = batch_of(model, learned=5), batch_of(model)
    assert flops.of([every]) - flops.of([some]) == 6 * D * VOCAB * 3 * 15
    assert flops.of([some, every]) == flops.of([some]) + flops.of([every])
    assert flops.of([blank(some)]) == 0.0


def test_the_probe_leaves_everything_as_it_was() -> None:
    model = patch(llama()).train()
    before = torch.get_rng_state()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    Flops(model, torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def freeze_embeddings(model: Any) -> None:
    model.model.embed_tokens.requires_grad_(False)


def freeze_first_layer(model: Any) -> None:
    freeze_embeddings(model)
    model.model.layers[0].requires_grad_(False)


def head_alone(model: Any) -> None:
    model.model.requires_grad_(False)


def embeddings_alone(model: Any) -> None:
    model.requires_grad_(False)
    model.model.embed_tokens.requires_grad_(True)


@pytest.mark.parametrize("change", [freeze_embeddings, freeze_first_layer, head_alone, embeddings_alone])
def test_what_is_frozen_is_not_differentiated(change: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    model = llama()
    flops, batch = Flops(model, torch.float32), batch_of(model)
    change(model)
    flops.refresh()
    backward = 0 if change is head_alone else 2
    layers = 1 if change is freeze_first_layer else 2
    masked = 4 * D * 3 * 20**2 / 2 * (2 + backward * layers)
    assert flops.of([batch]) == pytest.approx(counted(model, batch) - masked, rel=0.03)


def test_padding_and_packing_are_what_the_samples_are() -> None:
    torch.manual_seed(0)
    model = llama()
    flops = Flops(model, torch.float32)

    def piece(length: int) -> Piece:
        ids = torch.randint(1, VOCAB, (length,)).numpy()
        return Piece(ids, ids, (ids > 0).astype("float32"))

    pieces = [piece(n) for n in (3, 9, 5, 12)]
    alone = sum(flops.of([lay_out([[p]], 0, causal=True)]) for p in pieces)
    for rows in ([[p] for p in pieces], [pieces[:2], pieces[2:]], [pieces]):
        for multiple in (1, 8):
            assert flops.of([lay_out(rows, 0, causal=True, multiple=multiple)]) == alone
    both = [flops.of([lay_out(rows, 0, causal=False, multiple=8)]) for rows in ([pieces], [[p] for p in pieces])]
    square = 3 * 4 * 2 * D * sum(len(p.input_ids) ** 2 for p in pieces)
    assert both[0] == alone + square / 2  # the mask says that each sees all of its piece
    assert both[1] == alone  # nothing but the model's own direction here


def test_a_prefix_is_counted_by_its_mask() -> None:
    model = llama()
    flops = Flops(model, torch.float32)
    ids = torch.arange(1, 11).numpy()
    batch = lay_out([[Piece(ids, ids, (ids > 0).astype("float32"), prefix=4)]], 0, causal=True, multiple=8)
    plain = lay_out([[Piece(ids, ids, (ids > 0).astype("float32"))]], 0, causal=True)
    pairs = 10 * 11 / 2 + 4 * 3 / 2
    assert flops.of([batch]) - flops.of([plain]) == 3 * 4 * 2 * D * (pairs - 10**2 / 2)


def test_a_window_bounds_what_is_seen() -> None:
    near, far = (Flops(mistral(window), torch.float32).of([batch_of(mistral(window))]) for window in (8, 64))
    assert far - near == 3 * 4 * 2 * D * 3 * (20 - 8) ** 2 / 2


def test_experts_count_as_far_as_tokens_go_to_them() -> None:
    def of(chosen: int) -> float:
        size = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": chosen}
        model = MixtralForCausalLM(MixtralConfig(**SMALL, **size))
        return Flops(model, torch.float32).of([batch_of(model)])

    assert of(3) - of(1) == 2 * 6 * 2 * 3 * D * 48 * 60


def test_training_goes_on_as_before() -> None:
    torch.manual_seed(0)
    model = patch(llama())
    batch = batch_of(model, learned=5)
    device = torch.device("cpu")
    before, _ = window_gradient(model, [batch], device, torch.autocast("cpu", enabled=False))
    Flops(model, torch.float32).of([batch])
    after, _ = window_gradient(model, [batch], device, torch.autocast("cpu", enabled=False))
    assert torch.equal(before, after)
    assert totals([batch]) == {"logits": 15.0}


def test_utilization_is_a_share_of_a_measured_product(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = Flops(llama(), torch.bfloat16)
    asked = []

    def rate(device: torch.device, dtype: torch.dtype) -> float:
        asked.append((device.type, dtype))
        return 4e9

    monkeypatch.setattr(module, "matmul_rate", rate)
    assert flops.utilization(2e9, 2.0) == 0.25
    assert flops.utilization(2e9, 0.0) == 0.0
    assert asked == [("cpu", torch.bfloat16)]


def test_the_rate_is_measured_once() -> None:
    first = matmul_rate("cpu", torch.float32)
    assert 1e7 < first < 1e15
    assert matmul_rate(torch.device("cpu"), torch.float32) == first
